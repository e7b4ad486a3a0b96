/*
 * Has many threads do something at once that people are asked about.
 *
 * usage: wait PROCESSES THREADS
 *
 * Each of so many threads of each of so many processes connects once to an address of nobody, 192.0.2.1. It ends when all have
 * been answered, with 0 if all of them could be made.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void *ask(void *unused)
{
	static const struct sockaddr_in peer = {
		.sin_family = AF_INET,
		.sin_port = 0x0900, /* discard, in network order */
		.sin_addr.s_addr = 0x010200c0,
	};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)unused;
	if (fd < 0)
		_exit(1);
	/* Denied or not: it has waited. */
	(void)!connect(fd, (const struct sockaddr *)&peer, sizeof(peer));
	close(fd);
	return NULL;
}

static int process(int threads)
{
	pthread_t *all = calloc(threads, sizeof(*all));
	int i;

	for (i = 0; i < threads; i++)
		if (!all || pthread_create(&all[i], NULL, ask, NULL) != 0)
			return 1;
	for (i = 0; i < threads; i++)
		pthread_join(all[i], NULL);
	return 0;
}

int main(int argc, char **argv)
{
	int processes = argc == 3 ? atoi(argv[1]) : 0, threads = argc == 3 ? atoi(argv[2]) : 0;
	int i, status, failed = 0;

	if (processes < 1 || threads < 1) {
		fprintf(stderr, "usage: wait PROCESSES THREADS\n");
		return 2;
	}
	for (i = 0; i < processes; i++) {
		pid_t child = fork();

		if (child < 0)
			return 1;
		if (child == 0)
			_exit(process(threads));
	}
	while (wait(&status) > 0)
		failed |= status != 0;
	return failed;
}
