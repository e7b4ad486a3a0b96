/*
 * Times one kind of operation, over and over.
 *
 * usage: bench WHAT BLOCKS COUNT
 *   WHAT    exec   vfork, execve of this same file (which then exits at once), wait
 *           fork   fork, exit of the child, wait
 *           open   open for reading and close
 *           udp    connect of a UDP socket to the loopback
 *           null   getppid: what a system call costs that no hook looks at
 *           none   execve of a file that is executable and no program: all of an exec up to what is asked about it
 *           watched  the same of another such file
 *   BLOCKS  lines printed: nanoseconds per operation, one line per block
 *   COUNT   operations per block
 *
 * A first block is run and not printed. The status is 1 when an operation failed.
 *
 * usage: bench turn WHAT TURN TURNS SLOTS LENGTH
 *   Takes turns with others that are given different TURNs, without a word between them: time, since the machine started, is
 *   cut into slots of LENGTH milliseconds, and those whose number leaves TURN when divided by TURNS are this process's. In
 *   each of SLOTS such slots the operation is done 50 times; the nanoseconds of each but the first ten are printed.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *self;
static int udp;
static const struct sockaddr_in peer = {
	.sin_family = AF_INET,
	.sin_port = 0x0900, /* discard, in network order */
	.sin_addr.s_addr = 0x0100007f,
};

static void fail(const char *what)
{
	fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void reap(pid_t child, const char *what)
{
	int status;

	if (child < 0 || waitpid(child, &status, 0) != child)
		fail(what);
	if (status != 0) {
		fprintf(stderr, "bench: %s: the child ended with status 0x%x\n", what, status);
		exit(1);
	}
}

static void op_exec(void)
{
	static char *const argv[] = { "bench", "exit", NULL };
	static char *const environment[] = { NULL };
	pid_t child = vfork();

	if (child == 0) {
		execve(self, argv, environment);
		_exit(127);
	}
	reap(child, "exec");
}

static void no_program(const char *path)
{
	static char *const argv[] = { "none", NULL };
	static char *const environment[] = { NULL };

	if (execve(path, argv, environment) != -1 || errno != ENOEXEC)
		fail("exec of what is no program");
}

static void op_none(void)
{
	no_program("/run/bench/none");
}

static void op_watched(void)
{
	no_program("/run/bench/watched");
}

static void op_fork(void)
{
	pid_t child = fork();

	if (child == 0)
		_exit(0);
	reap(child, "fork");
}

static void op_open(void)
{
	int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail("open");
	close(fd);
}

static void op_udp(void)
{
	if (connect(udp, (const struct sockaddr *)&peer, sizeof(peer)) != 0)
		fail("connect");
}

static void op_null(void)
{
	syscall(SYS_getppid);
}

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int turns(void (*run)(void), long long mine, long long all, long slots, long long length)
{
	long long taken[50];
	int i;

	if (mine < 0 || all <= mine || slots < 1 || length < 1)
		return 2;
	for (; slots > 0; slots--) {
		long long next = now() / length + 1;
		struct timespec at;

		next += (mine - next % all + all) % all;
		at.tv_sec = next * length / 1000000000;
		at.tv_nsec = next * length % 1000000000;
		while ((errno = clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL)) != 0)
			if (errno != EINTR)
				fail("clock_nanosleep");
		for (i = 0; i < 50; i++) {
			long long begun = now();

			run();
			taken[i] = now() - begun;
		}
		for (i = 10; i < 50; i++)
			printf("%lld\n", taken[i]);
	}
	return 0;
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} kinds[] = {
		{ "exec", op_exec }, { "fork", op_fork }, { "open", op_open }, { "udp", op_udp }, { "null", op_null },
		{ "none", op_none }, { "watched", op_watched },
	};
	void (*run)(void) = NULL;
	long blocks, count, block, i;
	int turn;
	static long long taken[100000];

	if (argc == 2 && strcmp(argv[1], "exit") == 0)
		return 0;
	turn = argc == 7 && strcmp(argv[1], "turn") == 0;
	if (argc == 4 || turn)
		for (i = 0; i < (long)(sizeof(kinds) / sizeof(kinds[0])); i++)
			if (strcmp(argv[turn ? 2 : 1], kinds[i].name) == 0)
				run = kinds[i].run;
	self = argv[0];
	udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (udp < 0)
		fail("socket");
	if (run && turn)
		return turns(run, atoll(argv[3]), atoll(argv[4]), atol(argv[5]), atoll(argv[6]) * 1000000);
	blocks = argc == 4 ? atol(argv[2]) : 0;
	count = argc == 4 ? atol(argv[3]) : 0;
	if (!run || blocks < 1 || blocks >= (long)(sizeof(taken) / sizeof(taken[0])) || count < 1) {
		fprintf(stderr, "usage: bench exec|fork|open|udp|null|none|watched BLOCKS COUNT\n"
				"       bench turn WHAT TURN TURNS SLOTS LENGTH\n");
		return 2;
	}
	for (block = 0; block <= blocks; block++) {
		long long begun = now();

		for (i = 0; i < count; i++)
			run();
		taken[block] = (now() - begun) / count;
	}
	for (block = 1; block <= blocks; block++)
		printf("%lld\n", taken[block]);
	return 0;
}
