// Awkward processes for the kernel tests: each mode does one odd thing around an exec and nothing else.
// Built statically by the test, run inside a labelled cgroup. Modes are explained where they are.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <unistd.h>

extern char **environ;
static char **arguments;
static char buffer[256];
static pthread_barrier_t barrier;
static int together;

static void wait_for(const char *file)
{
	while (access(file, F_OK)) usleep(2000);
}

static void *later_change(void *unused)
{
	wait_for(arguments[2]);
	memcpy(buffer, arguments[4], strlen(arguments[4]) + 1);
	return unused;
}

static void *later_chdir(void *unused)
{
	wait_for(arguments[2]);
	if (chdir(arguments[3])) perror("chdir");
	return unused;
}

static void *exec_rest(void *first)
{
	char **argv = first;
	if (together) pthread_barrier_wait(&barrier);
	execve(argv[0], argv, environ);
	printf("exec %s: %s\n", argv[0], strerror(errno));
	fflush(stdout);
	return NULL;
}

static void handler(int signal)
{
	char text[] = "handled ??\n";
	text[8] = '0' + signal / 10;
	text[9] = '0' + signal % 10;
	if (write(1, text, 11) != 11) _exit(9);
}

static char *fault_page;
static int fault_fd;

// Takes the page away and gives it back a few times, so that exec gets as far as its hook; then only takes it away.
static void *drop_page(void *unused)
{
	for (int round = 0;; round++) {
		madvise(fault_page, 4096, MADV_DONTNEED);
		usleep(200);
		struct uffdio_zeropage again = { .range = { (unsigned long)fault_page, 4096 } };
		if (round < 200) ioctl(fault_fd, UFFDIO_ZEROPAGE, &again);
		usleep(200);
	}
	return unused;
}

static void thread(void *(*body)(void *), void *argument)
{
	pthread_t thread;
	int error = pthread_create(&thread, NULL, body, argument);
	if (error) {
		printf("pthread_create: %d %s\n", error, strerror(error));
		exit(9);
	}
}

int main(int argc, char **argv)
{
	if (argc < 2) return 9;
	const char *mode = argv[1];
	arguments = argv;
	// argument GO OLD NEW PROGRAM...: when there is a file GO, a sibling overwrites the program's last argument, OLD, with NEW.
	// environment GO OLD NEW PROGRAM...: the same for the only string of its environment.
	if (!strcmp(mode, "argument") || !strcmp(mode, "environment")) {
		strcpy(buffer, argv[3]);
		thread(later_change, NULL);
		char *env[] = { buffer, NULL };
		if (mode[0] == 'a') {
			char *new_argv[argc - 5 + 2];
			memcpy(new_argv, argv + 5, (argc - 5) * sizeof(char *));
			new_argv[argc - 5] = buffer;
			new_argv[argc - 4] = NULL;
			execve(argv[5], new_argv, environ);
		} else {
			execve(argv[5], argv + 5, env);
		}
		printf("exec: %s\n", strerror(errno));
		return 1;
	}
	// chdir GO FOLDER PROGRAM...: when there is a file GO, a sibling changes the working directory.
	if (!strcmp(mode, "chdir")) {
		thread(later_chdir, NULL);
		exec_rest(argv + 4);
		return 1;
	}
	// nonleader PROGRAM...: a thread that is not the leader calls exec.
	if (!strcmp(mode, "nonleader")) {
		thread(exec_rest, argv + 2);
		for (;;) pause();
	}
	// two A B: two threads call exec of one program each. Both are there before: while one thread is in exec, the kernel
	// refuses to make another (EAGAIN, fs->in_exec), held or not.
	if (!strcmp(mode, "two")) {
		static char *one[2], *two[2];
		pthread_barrier_init(&barrier, NULL, 2);
		together = 1;
		one[0] = argv[2];
		two[0] = argv[3];
		thread(exec_rest, one);
		thread(exec_rest, two);
		for (;;) pause();
	}
	// handler SIGNAL PROGRAM...: a handler that says so, then exec.
	if (!strcmp(mode, "handler")) {
		struct sigaction action = { .sa_handler = handler };
		sigaction(atoi(argv[2]), &action, NULL);
		exec_rest(argv + 3);
		return 1;
	}
	// timer PROGRAM...: an interval timer with a handler runs during exec.
	if (!strcmp(mode, "timer")) {
		struct sigaction action = { .sa_handler = handler };
		sigaction(SIGALRM, &action, NULL);
		struct itimerval timer = { { 0, 50000 }, { 0, 50000 } };
		setitimer(ITIMER_REAL, &timer, NULL);
		exec_rest(argv + 2);
		return 1;
	}
	// blocked SIGNAL PROGRAM...: the signal is blocked.
	if (!strcmp(mode, "blocked")) {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, atoi(argv[2]));
		sigprocmask(SIG_BLOCK, &set, NULL);
		exec_rest(argv + 3);
		return 1;
	}
	// memfd PROGRAM...: exec of a copy without a name.
	if (!strcmp(mode, "memfd")) {
		int from = open(argv[2], O_RDONLY), to = memfd_create("copy", MFD_CLOEXEC);
		char block[4096];
		ssize_t got;
		while ((got = read(from, block, sizeof block)) > 0)
			if (write(to, block, got) != got) return 9;
		fexecve(to, argv + 2, environ);
		printf("exec: %s\n", strerror(errno));
		return 1;
	}
	// vfork PROGRAM...: the parent's memory is shared while the child calls exec.
	if (!strcmp(mode, "vfork")) {
		pid_t child = vfork();
		if (child == 0) {
			execve(argv[2], argv + 2, environ);
			_exit(errno);
		}
		int status;
		waitpid(child, &status, 0);
		printf("child %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
		return 0;
	}
	// spawn PROGRAM...: posix_spawn.
	if (!strcmp(mode, "spawn")) {
		pid_t child;
		int error = posix_spawn(&child, argv[2], NULL, NULL, argv + 2, environ), status;
		if (error) {
			printf("spawn: %s\n", strerror(error));
			return 1;
		}
		waitpid(child, &status, 0);
		printf("child %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
		return 0;
	}
	// noargs PROGRAM: an empty argv.
	if (!strcmp(mode, "noargs")) {
		char *none[] = { NULL };
		execve(argv[2], none, environ);
		printf("exec: %s\n", strerror(errno));
		return 1;
	}
	// fault PROGRAM: its argument lies in a page that userfaultfd never gives, once exec has copied it.
	if (!strcmp(mode, "fault")) {
		int faults = syscall(SYS_userfaultfd, O_CLOEXEC);
		if (faults < 0) {
			perror("userfaultfd");
			return 3;
		}
		struct uffdio_api api = { .api = UFFD_API };
		ioctl(faults, UFFDIO_API, &api);
		char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		struct uffdio_register range = { .range = { (unsigned long)page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
		if (ioctl(faults, UFFDIO_REGISTER, &range)) perror("register");
		fault_page = page;
		fault_fd = faults;
		struct uffdio_zeropage zero = { .range = { (unsigned long)page, 4096 } };
		ioctl(faults, UFFDIO_ZEROPAGE, &zero);
		thread(drop_page, NULL);
		char *new_argv[] = { argv[2], page, NULL };
		execve(argv[2], new_argv, environ);
		printf("exec: %s\n", strerror(errno));
		return 1;
	}
	// moved PROGRAM...: says ready, waits for a line, then exec (it was moved meanwhile).
	if (!strcmp(mode, "moved")) {
		printf("ready\n");
		fflush(stdout);
		if (read(0, buffer, 1) != 1) return 9;
		exec_rest(argv + 2);
		return 1;
	}
	return 9;
}
