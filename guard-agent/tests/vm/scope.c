/*
 * What a process can try to get out of its cgroup, and what must not lose its label. Prints one line: "ok" or the error's
 * name as strerror has it.
 *
 *   scope write FILE          opens FILE for writing and writes 0 (a cgroup.procs: moves itself)
 *   scope later FILE          opens FILE, says "ready", waits for a line, then writes 0
 *   scope clone DIR FILE      clone3 into the cgroup DIR; the child makes FILE
 *   scope exec-in DIR ARGV... clone3 into the cgroup DIR; the child executes ARGV
 *   scope mkdir DIR
 *   scope rmattr DIR          takes trusted.guard.label from DIR
 *   scope thread ARGV...      starts four threads; the last one says "ready", waits for a line and executes ARGV
 *   scope storm N             N times fork, exit, wait; says how many forks failed
 *   scope bomb N              forks N children that stay until a line comes; says how many forks failed
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

static char **command;

static int say(int failed)
{
	puts(failed ? strerror(errno) : "ok");
	fflush(stdout);
	return failed ? 1 : 0;
}

static void wait_for_line(void)
{
	char c;

	puts("ready");
	fflush(stdout);
	if (read(0, &c, 1) < 0)
		exit(3);
}

static pid_t clone_into(const char *folder)
{
	struct clone_args args = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	int fd = open(folder, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	args.cgroup = (uint64_t)fd;
	return (pid_t)syscall(SYS_clone3, &args, sizeof(args));
}

static void *run(void *last)
{
	if (last) {
		wait_for_line();
		execv(command[0], command);
		_exit(say(1));
	}
	pause();
	return NULL;
}

int main(int argc, char **argv)
{
	const char *what = argc > 2 ? argv[1] : "";
	int fd, failed = 0, i, n;
	pid_t child;

	if (strcmp(what, "write") == 0) {
		fd = open(argv[2], O_WRONLY);
		return say(fd < 0 || write(fd, "0", 1) != 1);
	}
	if (strcmp(what, "later") == 0) {
		fd = open(argv[2], O_WRONLY);
		wait_for_line();
		return say(fd < 0 || write(fd, "0", 1) != 1);
	}
	if (strcmp(what, "clone") == 0 || strcmp(what, "exec-in") == 0) {
		child = clone_into(argv[2]);
		if (child == 0 && what[0] == 'c')
			_exit(open(argv[3], O_CREAT | O_WRONLY, 0600) < 0);
		if (child == 0) {
			execv(argv[3], argv + 3);
			_exit(say(1));
		}
		if (child > 0 && waitpid(child, &i, 0) == child && WIFSIGNALED(i))
			printf("the child ended by signal %d\n", WTERMSIG(i));
		return what[0] == 'c' || child < 0 ? say(child < 0) : 0;
	}
	if (strcmp(what, "mkdir") == 0)
		return say(mkdir(argv[2], 0755));
	if (strcmp(what, "rmattr") == 0)
		return say(removexattr(argv[2], "trusted.guard.label"));
	if (strcmp(what, "thread") == 0) {
		pthread_t thread;

		command = argv + 2;
		for (i = 0; i < 3; i++)
			pthread_create(&thread, NULL, run, NULL);
		pthread_create(&thread, NULL, run, command);
		pause();
	}
	n = argc > 2 ? atoi(argv[2]) : 0;
	if (strcmp(what, "storm") == 0) {
		for (i = 0; i < n; i++) {
			child = fork();
			if (child == 0)
				_exit(0);
			if (child < 0)
				failed++;
			else
				waitpid(child, NULL, 0);
		}
		printf("%d failed\n", failed);
		return 0;
	}
	if (strcmp(what, "bomb") == 0) {
		for (i = 0; i < n; i++) {
			child = fork();
			if (child == 0) {
				pause();
				_exit(0);
			}
			failed += child < 0;
		}
		printf("%d failed: %s\n", failed, strerror(errno));
		wait_for_line();
		signal(SIGTERM, SIG_IGN);
		kill(0, SIGTERM);
		return 0;
	}
	fprintf(stderr, "scope: usage\n");
	return 2;
}
