/*
 * Runs a program while every exec of one file waits for a permission event that is always answered with yes: what Guard's own
 * answers are compared with.
 *
 * usage: fanotify FILE PROGRAM [ARGUMENT...]
 *
 * FILE must be on the path of nobody else. The status is that of PROGRAM; 125 when the responder failed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fanotify.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static void fail(const char *what)
{
	fprintf(stderr, "fanotify: %s: %s\n", what, strerror(errno));
	exit(125);
}

static void answer(int group)
{
	static char buffer[65536] __attribute__((aligned(8)));
	ssize_t length = read(group, buffer, sizeof(buffer));
	struct fanotify_event_metadata *event = (void *)buffer;

	if (length < 0)
		fail("reading an event");
	for (; FAN_EVENT_OK(event, length); event = FAN_EVENT_NEXT(event, length)) {
		struct fanotify_response response = { .fd = event->fd, .response = FAN_ALLOW };

		if (event->fd < 0 || write(group, &response, sizeof(response)) != sizeof(response))
			fail("answering an event");
		close(event->fd);
	}
}

int main(int argc, char **argv)
{
	struct pollfd pollers[2];
	int group, status;
	pid_t child;

	if (argc < 3) {
		fprintf(stderr, "usage: fanotify FILE PROGRAM [ARGUMENT...]\n");
		return 2;
	}
	group = fanotify_init(FAN_CLASS_CONTENT | FAN_CLOEXEC | FAN_NONBLOCK, O_RDONLY | O_CLOEXEC);
	if (group < 0)
		fail("fanotify");
	if (fanotify_mark(group, FAN_MARK_ADD, FAN_OPEN_EXEC_PERM, AT_FDCWD, argv[1]) != 0)
		fail(argv[1]);
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		execv(argv[2], argv + 2);
		fail(argv[2]);
	}
	/* As the agent's thread that answers. */
	if (setpriority(PRIO_PROCESS, 0, -15) != 0)
		fail("priority");
	pollers[0] = (struct pollfd){ .fd = group, .events = POLLIN };
	pollers[1] = (struct pollfd){ .fd = syscall(SYS_pidfd_open, child, 0), .events = POLLIN };
	if (pollers[1].fd < 0)
		fail("pidfd_open");
	for (;;) {
		if (poll(pollers, 2, -1) < 0 && errno != EINTR)
			fail("poll");
		if (pollers[0].revents & POLLIN)
			answer(group);
		else if (pollers[1].revents & POLLIN)
			break;
	}
	if (waitpid(child, &status, 0) != child)
		fail("waitpid");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 124;
}
