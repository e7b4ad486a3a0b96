/*
 * Runs a program whose execs a supervisor always allows: what Guard's own answers are compared with.
 *
 * usage: notify [-p PATH]... PROGRAM [ARGUMENT...]
 *
 * A child installs a seccomp filter that hands every execve and execveat to the parent, and becomes PROGRAM. The parent
 * answers each with SECCOMP_USER_NOTIF_FLAG_CONTINUE at once. Without PATH it looks at nothing, so this is the least that such
 * a supervisor costs. With it, it does what it has to in order to decide by path: reads the path from the caller's memory,
 * asks whether the caller still waits, and refuses every execve of another PATH. The status is that of PROGRAM; 125 when the
 * supervisor failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "notify: %s: %s\n", what, strerror(errno));
	exit(125);
}

static int install(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execve, 1, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_execveat, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = sizeof(filter) / sizeof(filter[0]), .filter = filter };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		fail("no new privileges");
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

static void pass(int socket, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	char byte = 0;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);

	header->cmsg_level = SOL_SOCKET;
	header->cmsg_type = SCM_RIGHTS;
	header->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(header), &fd, sizeof(int));
	if (sendmsg(socket, &message, 0) != 1)
		fail("sending the listener");
}

static int take(int socket)
{
	char control[CMSG_SPACE(sizeof(int))] = { 0 };
	char byte;
	struct iovec data = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *header;
	int fd;

	if (recvmsg(socket, &message, MSG_CMSG_CLOEXEC) != 1)
		fail("receiving the listener");
	header = CMSG_FIRSTHDR(&message);
	if (!header || header->cmsg_type != SCM_RIGHTS) {
		errno = EPROTO;
		fail("receiving the listener");
	}
	memcpy(&fd, CMSG_DATA(header), sizeof(int));
	return fd;
}

/* Whether the path that is to be executed is one of these. A path across the end of a page counts as another one. */
static int known(int listener, const struct seccomp_notif *question, char **paths, int count)
{
	char path[256];
	unsigned long address = question->data.args[question->data.nr == SYS_execveat];
	size_t room = 4096 - address % 4096;
	struct iovec to = { path, room < sizeof(path) ? room : sizeof(path) };
	struct iovec from = { (void *)address, to.iov_len };
	ssize_t got = process_vm_readv(question->pid, &to, 1, &from, 1, 0);
	int i;

	/* Otherwise another process may have had this number by now. */
	if (got <= 0 || ioctl(listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &question->id) != 0)
		return 0;
	if (!memchr(path, 0, got))
		return 0;
	for (i = 0; i < count; i++)
		if (strcmp(path, paths[i]) == 0)
			return 1;
	return 0;
}

int main(int argc, char **argv)
{
	struct seccomp_notif_sizes sizes;
	struct seccomp_notif *question;
	struct seccomp_notif_resp *answer;
	struct pollfd poller;
	int sockets[2], listener, status, option, count = 0;
	char *paths[64];
	pid_t child;

	while ((option = getopt(argc, argv, "+p:")) == 'p' && count < 64)
		paths[count++] = optarg;
	argv += optind;
	if (option != -1 || !*argv) {
		fprintf(stderr, "usage: notify [-p PATH]... PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes) != 0)
		fail("sizes of a notification");
	question = calloc(1, sizes.seccomp_notif);
	answer = calloc(1, sizes.seccomp_notif_resp);
	if (!question || !answer || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
		fail("setting up");
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		listener = install();
		if (listener < 0)
			fail("seccomp");
		pass(sockets[1], listener);
		close(listener);
		execv(argv[0], argv);
		fail(argv[0]);
	}
	listener = take(sockets[0]);
	/* As the agent's thread that answers. */
	if (setpriority(PRIO_PROCESS, 0, -15) != 0)
		fail("priority");
	poller = (struct pollfd){ .fd = listener, .events = POLLIN };
	for (;;) {
		memset(question, 0, sizes.seccomp_notif);
		/* poll tells when nobody is left; the ioctl alone would wait for ever. */
		if (poll(&poller, 1, -1) < 0 && errno != EINTR)
			fail("poll");
		if (poller.revents & POLLHUP)
			break;
		if (!(poller.revents & POLLIN))
			continue;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, question) != 0) {
			if (errno == EINTR || errno == ENOENT)
				continue;
			fail("receiving a notification");
		}
		memset(answer, 0, sizes.seccomp_notif_resp);
		answer->id = question->id;
		if (count == 0 || known(listener, question, paths, count))
			answer->flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		else
			answer->error = -EPERM;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, answer) != 0 && errno != ENOENT)
			fail("answering a notification");
	}
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 124;
}
