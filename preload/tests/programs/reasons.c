/* Connections that stay on TCP, each for another reason. Prints the port of each, waits for the end of its input.
 *
 *     reasons OWN-ADDRESS PEER-ADDRESS PEER-PORT
 *
 * The peer sends back what it gets. */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sockaddr_in own, peer;

static int connected(const char *name)
{
	struct sockaddr_in at;
	socklen_t length = sizeof(at);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&own, sizeof(own)) ||
	    connect(fd, (struct sockaddr *)&peer, sizeof(peer)) ||
	    getsockname(fd, (struct sockaddr *)&at, &length))
		err(1, "%s", name);
	printf("%s %d\n", name, ntohs(at.sin_port));
	return fd;
}

static void receive(int fd, size_t length)
{
	char bytes[512];

	while (length > 0) {
		ssize_t n = read(fd, bytes, length < sizeof(bytes) ? length : sizeof(bytes));

		if (n <= 0)
			err(1, "read");
		length -= (size_t)n;
	}
}

/* More than enough turns and bytes to move. */
static void talk(int fd)
{
	char bytes[512];

	memset(bytes, 'x', sizeof(bytes));
	for (int i = 0; i < 64; i++) {
		if (write(fd, bytes, sizeof(bytes)) != sizeof(bytes))
			err(1, "write");
		receive(fd, sizeof(bytes));
	}
}

int main(int argc, char **argv)
{
	int fd, told[2];
	char byte = 0;

	if (argc != 4)
		errx(1, "reasons OWN-ADDRESS PEER-ADDRESS PEER-PORT");
	own.sin_family = peer.sin_family = AF_INET;
	peer.sin_port = htons((unsigned short)atoi(argv[3]));
	if (inet_pton(AF_INET, argv[1], &own.sin_addr) != 1 || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1)
		errx(1, "not an address");

	/* Before the library has anything of its own: a child has the connection, too, and uses it. */
	fd = connected("shared");
	if (pipe(told))
		err(1, "pipe");
	switch (fork()) {
	case -1:
		err(1, "fork");
	case 0:
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (write(fd, "x", 1) != 1)
			_exit(1);
		receive(fd, 1);
		if (write(told[1], "x", 1) != 1)
			_exit(1);
		pause();
		_exit(0);
	}
	if (read(told[0], &byte, 1) != 1)
		err(1, "the child");
	talk(fd);

	connected("short");

	fd = connected("uncounted");
	/* A call that the library does not see. */
	if (syscall(SYS_write, fd, "x", 1) != 1)
		err(1, "syscall");
	receive(fd, 1);
	talk(fd);

	fd = connected("needs tcp");
	if (send(fd, "u", 1, MSG_OOB) != 1)
		err(1, "send");
	talk(fd);

	talk(connected("unanswered"));

	printf("ready\n");
	fflush(stdout);
	while (read(0, &byte, 1) > 0)
		;
	return 0;
}
