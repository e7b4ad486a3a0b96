/* A shared object, loaded before anything is labelled, so that nothing has to be executed for it.
 * What Python cannot do, for the attempts to escape: other ways into the kernel, children that share, tight races.
 * Functions give -1 and set errno when they fail.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static char *const *argv_of(const char *path, const char **room)
{
	room[0] = path;
	room[1] = "by-trick";
	room[2] = NULL;
	return (char *const *)room;
}

/* ---- other ways to execute ---- */

/* execve by the 32-bit entry of the kernel, from 64-bit code: everything lies below 4 GiB. */
int int80_execve(const char *path)
{
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	uint32_t *argv = (uint32_t *)(low + 2048);
	int result;

	if (low == MAP_FAILED)
		return -1;
	strcpy(low, path);
	argv[0] = (uint32_t)(uintptr_t)low;
	argv[1] = 0;
	__asm__ volatile("int $0x80"
			 : "=a"(result)
			 : "a"(11), "b"((uint32_t)(uintptr_t)low), "c"((uint32_t)(uintptr_t)argv), "d"(0)
			 : "memory", "r8", "r9", "r10", "r11");
	errno = -result;
	return -1;
}

/* execve of the x32 table. */
int x32_execve(const char *path)
{
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	uint32_t *argv = (uint32_t *)(low + 2048);

	if (low == MAP_FAILED)
		return -1;
	strcpy(low, path);
	argv[0] = (uint32_t)(uintptr_t)low;
	argv[1] = 0;
	return (int)syscall(0x40000000 + 520, low, argv, 0);
}

/* A child that calls exec; gives what the exec said: the child shares memory, so it says it in errno's place. */
static int child_errno;

static int exec_in_child(void *path)
{
	const char *room[3];

	execve(path, argv_of(path, room), environ);
	child_errno = errno;
	_exit(1);
}

/* clone with CLONE_VM and what else is asked, without CLONE_THREAD. */
int clone_exec(const char *path, int flags)
{
	char *stack = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	int status;
	pid_t child;

	child_errno = 0;
	child = clone(exec_in_child, stack + 65536, CLONE_VM | SIGCHLD | flags, (void *)path);
	if (child < 0)
		return -1;
	/* With CLONE_PARENT it is somebody else's child. */
	if (waitpid(child, &status, 0) < 0)
		usleep(500000);
	errno = child_errno;
	return child_errno ? -1 : 0;
}

int vfork_exec(const char *path)
{
	const char *room[3];
	int status;
	pid_t child;

	argv_of(path, room);
	child_errno = 0;
	child = vfork();
	if (child == 0) {
		execve(path, (char *const *)room, environ);
		child_errno = errno;
		_exit(1);
	}
	if (child < 0)
		return -1;
	waitpid(child, &status, 0);
	errno = child_errno;
	return child_errno ? -1 : 0;
}

int spawn_exec(const char *path)
{
	const char *room[3];
	int status, failed;
	pid_t child;

	failed = posix_spawn(&child, path, NULL, NULL, argv_of(path, room), environ);
	if (failed) {
		errno = failed;
		return -1;
	}
	waitpid(child, &status, 0);
	return 0;
}

/* ---- threads ---- */

static pthread_barrier_t together;
static int last_errno;

static void *exec_together(void *path)
{
	const char *room[3];

	pthread_barrier_wait(&together);
	execve(path, argv_of(path, room), environ);
	last_errno = errno;
	pthread_barrier_wait(&together);
	return NULL;
}

/* Several threads execute at once, each its own program; returns when all were refused. */
int threads_exec(const char **paths, int number)
{
	pthread_t made;

	pthread_barrier_init(&together, NULL, (unsigned)number + 1);
	for (int i = 0; i < number; i++)
		if (pthread_create(&made, NULL, exec_together, (void *)paths[i]))
			return -1;
	pthread_barrier_wait(&together);
	pthread_barrier_wait(&together);
	errno = last_errno;
	return -1;
}

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

struct swap {
	volatile char *place;
	const char *first, *second;
	size_t length;
	volatile int stop;
};

static void *swap_for_ever(void *given)
{
	struct swap *swap = given;

	while (!swap->stop) {
		memcpy((void *)swap->place, swap->second, swap->length);
		memcpy((void *)swap->place, swap->first, swap->length);
	}
	return NULL;
}

/* Children execute a path over and over for some milliseconds, while a thread changes the path between two of the same length;
 * gives how often the exec was refused. */
int race_path(const char *first, const char *second, int milliseconds)
{
	static char place[4096];
	struct swap swap = { place, first, second, strlen(first) + 1, 0 };
	double end = now() + milliseconds / 1e3;
	const char *room[3];
	int refused = 0, status;
	pthread_t made;

	strcpy(place, first);
	argv_of(place, room);
	if (pthread_create(&made, NULL, swap_for_ever, &swap))
		return -1;
	while (now() < end) {
		/* It shares the memory, and so the race. */
		pid_t child = vfork();

		if (child == 0) {
			execve(place, (char *const *)room, environ);
			_exit(99);
		}
		if (child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 99)
			refused++;
	}
	swap.stop = 1;
	pthread_join(made, NULL);
	return refused;
}

/* connect (or sendto, with data) over and over while a thread changes the address; gives how often it was refused. */
int race_address(int type, const void *first, const void *second, int length, const char *data, int milliseconds)
{
	static char place[128];
	struct swap swap = { place, first, second, (size_t)length, 0 };
	double end = now() + milliseconds / 1e3;
	int refused = 0, family = *(const unsigned short *)first;
	pthread_t made;

	memcpy(place, first, (size_t)length);
	if (pthread_create(&made, NULL, swap_for_ever, &swap))
		return -1;
	while (now() < end) {
		long fd = syscall(SYS_socket, family, type, 0);
		long done;

		if (data)
			done = syscall(SYS_sendto, fd, data, strlen(data), 0, place, length);
		else
			done = syscall(SYS_connect, fd, place, length);
		if (done < 0 && errno == EPERM)
			refused++;
		close((int)fd);
	}
	swap.stop = 1;
	pthread_join(made, NULL);
	return refused;
}

/* Renames two files against each other for ever: in a child, which is returned. */
int exchange_for_ever(const char *one, const char *other)
{
	pid_t child = fork();

	if (child == 0)
		for (;;)
			syscall(SYS_renameat2, AT_FDCWD, one, AT_FDCWD, other, 2);
	return child;
}

/* Puts a symbolic link to one and to the other in a place for ever. */
int links_for_ever(const char *place, const char *one, const char *other)
{
	char next[4096];
	pid_t child;

	snprintf(next, sizeof next, "%s.next", place);
	child = fork();
	if (child == 0)
		for (;;) {
			unlink(next);
			if (symlink(one, next) == 0)
				rename(next, place);
			unlink(next);
			if (symlink(other, next) == 0)
				rename(next, place);
		}
	return child;
}

/* Sends signals to a process for ever. */
int signals_for_ever(int pid, int one, int other)
{
	pid_t child = fork();

	if (child == 0)
		for (;;) {
			kill(pid, one);
			kill(pid, other);
			if (getppid() == 1)
				_exit(0);
		}
	return child;
}

/* Opens a path for writing over and over for some milliseconds, and writes; gives how often it could. */
int race_write(const char *path, const char *text, int milliseconds)
{
	double end = now() + milliseconds / 1e3;
	int done = 0;

	while (now() < end) {
		int fd = open(path, O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		if (write(fd, text, strlen(text)) > 0)
			done++;
		close(fd);
	}
	return done;
}

/* ---- a page that is not there until somebody has thought about it ---- */

static int fault_fd;
static char *fault_page;
static char *volatile fault_content;
static int fault_milliseconds;

static void *serve_fault(void *unused)
{
	struct uffd_msg message;
	static char page[4096] __attribute__((aligned(4096)));

	while (read(fault_fd, &message, sizeof message) == sizeof message) {
		struct uffdio_copy copy = { .dst = (uintptr_t)fault_page, .src = (uintptr_t)page, .len = 4096 };

		usleep((useconds_t)fault_milliseconds * 1000);
		strcpy(page, fault_content);
		ioctl(fault_fd, UFFDIO_COPY, &copy);
	}
	return unused;
}

/* A page whose first reader waits, and then finds the content. */
char *slow_page(const char *content, int milliseconds)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range;
	pthread_t made;

	fault_fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	if (fault_fd < 0 || ioctl(fault_fd, UFFDIO_API, &api))
		return NULL;
	fault_page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	range = (struct uffdio_register){ .range = { (uintptr_t)fault_page, 4096 }, .mode = UFFDIO_REGISTER_MODE_MISSING };
	if (ioctl(fault_fd, UFFDIO_REGISTER, &range))
		return NULL;
	fault_content = strdup(content);
	fault_milliseconds = milliseconds;
	if (pthread_create(&made, NULL, serve_fault, NULL))
		return NULL;
	return fault_page;
}

/* Takes the page away again, so that the next reader waits too, and finds something else. */
int slow_again(const char *content)
{
	fault_content = strdup(content);
	return madvise(fault_page, 4096, MADV_DONTNEED);
}

/* ---- a tracer inside the workload ---- */

/* A traced child executes `first`; at the entry of each execve the tracer puts `second` in its place from the second time on (the
 * kernel starts a held call again), or at once. Gives the child's status. */
int tracer_swaps_path(const char *first, const char *second, int at_once)
{
	static char place[4096];
	const char *room[3];
	int status, seen = 0, inside = 0;
	pid_t child;
	double end = now() + 4;

	strcpy(place, first);
	argv_of(first, room);
	child = fork();
	if (child < 0)
		return -1;
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		execve(place, (char *const *)room, environ);
		_exit(99);
	}
	waitpid(child, &status, 0);
	ptrace(PTRACE_SETOPTIONS, child, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
	ptrace(PTRACE_SYSCALL, child, 0, 0);
	while (now() < end) {
		struct user_regs_struct registers;
		int signal;

		if (waitpid(child, &status, WNOHANG | __WALL) != child) {
			usleep(1000);
			continue;
		}
		if (WIFEXITED(status) || WIFSIGNALED(status))
			return status;
		signal = WSTOPSIG(status);
		if (signal == (SIGTRAP | 0x80)) {
			inside = !inside;
			ptrace(PTRACE_GETREGS, child, 0, &registers);
			if (inside && registers.orig_rax == SYS_execve && (at_once || seen++ > 0)) {
				for (size_t at = 0; at <= strlen(second); at += 8) {
					long word = 0;

					memcpy(&word, second + at, strlen(second) + 1 - at < 8 ? strlen(second) + 1 - at : 8);
					ptrace(PTRACE_POKEDATA, child, place + at, word);
				}
			}
			signal = 0;
		} else if (signal == SIGTRAP || status >> 16) {
			signal = 0;
		}
		ptrace(PTRACE_SYSCALL, child, 0, signal);
	}
	kill(child, SIGKILL);
	return 0;
}
