// More awkward processes for the kernel tests: tracers, namespaces, seccomp supervisors, restarts. Modes are explained
// where they are; built and used as odd.c.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static int run(char **argv)
{
	execve(argv[0], argv, environ);
	printf("exec %s: %s\n", argv[0], strerror(errno));
	fflush(stdout);
	return 126;
}

static pthread_barrier_t together;

static void *run_thread(void *argv)
{
	pthread_barrier_wait(&together);
	run(argv);
	return NULL;
}

// A thread that calls exec of its program with its file, when it is its turn.
static struct turn {
	sem_t come;
	char *program, file[256];
} turns[8];

static void *run_in_turn(void *argument)
{
	struct turn *turn = argument;
	while (sem_wait(&turn->come)) ;
	run((char *[]){ turn->program, turn->file, NULL });
	return NULL;
}

static void *take_turns(void *unused)
{
	char byte;
	for (int i = 0; i < 8 && read(0, &byte, 1) == 1; i++) sem_post(&turns[i].come);
	for (;;) pause();
	return unused;
}

// A tracer that hides every stop signal from its tracee: what runs is never stopped by SIGSTOP.
static int swallow(pid_t child)
{
	int status;
	while (waitpid(child, &status, __WALL) == child) {
		if (WIFEXITED(status)) return WEXITSTATUS(status);
		if (WIFSIGNALED(status)) return 128 + WTERMSIG(status);
		int signal = WSTOPSIG(status), event = status >> 16;
		if (event || signal == SIGTRAP || signal == SIGSTOP || signal == SIGCONT) signal = 0;
		ptrace(PTRACE_CONT, child, 0, signal);
	}
	return 9;
}

static long seccomp_notify(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execve, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static int send_fd(int socket, int fd)
{
	char byte = 0, room[CMSG_SPACE(sizeof fd)] = { 0 };
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(head), &fd, sizeof fd);
	return sendmsg(socket, &message, 0) == 1 ? 0 : -1;
}

static int receive_fd(int socket)
{
	char byte, room[CMSG_SPACE(sizeof(int))];
	struct iovec part = { &byte, 1 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room };
	int fd = -1;
	if (recvmsg(socket, &message, 0) == 1 && CMSG_FIRSTHDR(&message)) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static int in_child(char **argv)
{
	pid_t child = fork();
	if (child == 0) _exit(run(argv));
	int status;
	waitpid(child, &status, 0);
	printf("child %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3) return 9;
	const char *mode = argv[1];
	// swallow PROGRAM...: the program's tracer swallows its stop signals.
	// seized PROGRAM...: the same with PTRACE_SEIZE.
	if (!strcmp(mode, "swallow") || !strcmp(mode, "seized")) {
		int gate[2];
		if (pipe(gate)) return 9;
		pid_t child = fork();
		if (child == 0) {
			char byte;
			if (mode[1] == 'w') ptrace(PTRACE_TRACEME, 0, 0, 0);
			else if (read(gate[0], &byte, 1) != 1) _exit(9);
			_exit(run(argv + 2));
		}
		if (mode[1] == 'e' && (ptrace(PTRACE_SEIZE, child, 0, 0) || write(gate[1], "x", 1) != 1)) return 9;
		int code = swallow(child);
		printf("traced %d\n", code);
		return 0;
	}
	// then PROGRAM...: forks and calls exec at once, which a new image may not do before it was compared.
	if (!strcmp(mode, "then")) {
		pid_t child = fork();
		if (child < 0) printf("fork: %s\n", strerror(errno));
		if (child == 0) _exit(0);
		if (child > 0) printf("fork: worked\n");
		fflush(stdout);
		return run(argv + 2);
	}
	// init PROGRAM...: as the init of a PID namespace.
	if (!strcmp(mode, "init")) {
		if (unshare(CLONE_NEWPID)) {
			perror("unshare");
			return 3;
		}
		return in_child(argv + 2);
	}
	// user PROGRAM...: as root of a user namespace made by nobody.
	if (!strcmp(mode, "user")) {
		if (setgid(65534) || setuid(65534)) return 9;
		if (unshare(CLONE_NEWUSER)) {
			perror("unshare");
			return 3;
		}
		return run(argv + 2);
	}
	// nobody PROGRAM...: as user 65534.
	if (!strcmp(mode, "nobody")) {
		if (setgid(65534) || setuid(65534)) return 9;
		return run(argv + 2);
	}
	// supervised PROGRAM...: a seccomp supervisor lets each round of execve go on, and says how many it saw.
	if (!strcmp(mode, "supervised")) {
		int pair[2];
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) return 9;
		pid_t child = fork();
		if (child == 0) {
			int listener = seccomp_notify();
			if (listener < 0 || send_fd(pair[1], listener)) _exit(3);
			close(listener);
			_exit(run(argv + 2));
		}
		close(pair[1]);
		int listener = receive_fd(pair[0]), seen = 0, status = 0;
		if (listener < 0) return 3;
		while (waitpid(child, &status, WNOHANG) == 0) {
			struct pollfd ready = { listener, POLLIN, 0 };
			struct seccomp_notif asked = { 0 };
			if (poll(&ready, 1, 20) != 1 || ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked)) continue;
			struct seccomp_notif_resp answer = { .id = asked.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE };
			seen++;
			ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
		}
		printf("supervised %d after %d\n", WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), seen);
		return 0;
	}
	// threads N PROGRAM...: N threads call exec of the same program at once.
	if (!strcmp(mode, "threads")) {
		pthread_attr_t small;
		pthread_attr_init(&small);
		pthread_attr_setstacksize(&small, 65536);
		// All are there before: while a thread is in exec, the kernel makes no other (EAGAIN).
		int number = atoi(argv[2]);
		pthread_barrier_init(&together, NULL, number);
		for (; number > 0; number--) {
			pthread_t made;
			if (pthread_create(&made, &small, run_thread, argv + 3)) return 9;
		}
		for (;;) pause();
	}
	// turns FILE PROGRAM...: a thread for each program, the first thread for the second one, calls exec of it with FILE-0,
	// FILE-1 and so on: one after another, as bytes come on the standard input.
	if (!strcmp(mode, "turns")) {
		int number = argc - 3;
		pthread_t made;
		if (number < 2 || number > 8) return 9;
		for (int i = 0; i < number; i++) {
			turns[i].program = argv[3 + i];
			snprintf(turns[i].file, sizeof turns[i].file, "%s-%d", argv[2], i);
			sem_init(&turns[i].come, 0, 0);
			if (i != 1 && pthread_create(&made, NULL, run_in_turn, &turns[i])) return 9;
		}
		if (pthread_create(&made, NULL, take_turns, NULL)) return 9;
		run_in_turn(&turns[1]);
		for (;;) pause();
	}
	// at FOLDER NAME...: execveat with a folder's descriptor.
	if (!strcmp(mode, "at")) {
		int folder = open(argv[2], O_PATH | O_DIRECTORY);
		syscall(SYS_execveat, folder, argv[3], argv + 3, environ, 0);
		printf("execveat: %s\n", strerror(errno));
		return 1;
	}
	// deleted PROGRAM...: exec through a descriptor of a file that has no name any more.
	if (!strcmp(mode, "deleted")) {
		int file = open(argv[2], O_PATH | O_CLOEXEC);
		unlink(argv[2]);
		syscall(SYS_execveat, file, "", argv + 2, environ, AT_EMPTY_PATH);
		printf("execveat: %s\n", strerror(errno));
		return 1;
	}
	// siblings PROGRAM...: other threads send themselves and the process signals without end while this one calls exec.
	if (!strcmp(mode, "siblings")) {
		pid_t child = fork();
		if (child == 0) {
			for (;;) {
				kill(getppid(), SIGCONT);
				kill(getppid(), SIGWINCH);
				kill(getppid(), SIGURG);
				if (getppid() == 1) _exit(0);
			}
		}
		run(argv + 2);
		return 1;
	}
	return 9;
}
