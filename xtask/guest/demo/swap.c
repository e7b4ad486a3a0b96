/*
 * A program that is held with one command line and tries to run another: while its main thread waits inside execve(2),
 * a second thread rewrites the last argument in memory.
 *
 * usage: swap GO DONE FROM TO PROGRAM [ARGUMENT...]
 *   GO    the rewriting thread waits until this file exists
 *   DONE  it makes this file afterwards
 *   FROM  last argument when PROGRAM is started; TO is what it becomes (not longer)
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static const char *go, *done, *to;
static char argument[4096];

static void *rewrite(void *unused)
{
	const struct timespec pause = { .tv_nsec = 5 * 1000 * 1000 };

	(void)unused;
	while (access(go, F_OK) != 0)
		nanosleep(&pause, NULL);
	strcpy(argument, to);
	close(open(done, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
	/* The thread goes on living: an exec that succeeds ends it. */
	for (;;)
		nanosleep(&pause, NULL);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	char *command[64];
	int i;

	if (argc < 6 || argc > 60 || strlen(argv[3]) >= sizeof(argument) || strlen(argv[4]) > strlen(argv[3])) {
		fprintf(stderr, "usage: swap GO DONE FROM TO PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	go = argv[1];
	done = argv[2];
	to = argv[4];
	strcpy(argument, argv[3]);
	for (i = 5; i < argc; i++)
		command[i - 5] = argv[i];
	command[argc - 5] = argument;
	command[argc - 4] = NULL;
	if (pthread_create(&thread, NULL, rewrite, NULL) != 0) {
		fprintf(stderr, "swap: no thread\n");
		return 2;
	}
	execve(command[0], command, environ);
	fprintf(stderr, "swap: %s: %s\n", command[0], strerror(errno));
	return 126;
}
