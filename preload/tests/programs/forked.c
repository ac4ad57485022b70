/* A server that has answered connections by itself leaves one to a child that it forks. The child uses it, and ends.
 *
 *     forked ADDRESS */
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in at;

static int accepted(int listener, int *client)
{
	int fd;

	*client = socket(AF_INET, SOCK_STREAM, 0);
	if (*client < 0 || connect(*client, (struct sockaddr *)&at, sizeof(at)))
		err(1, "connect");
	fd = accept(listener, NULL, NULL);
	if (fd < 0)
		err(1, "accept");
	return fd;
}

int main(int argc, char **argv)
{
	int client, fd, status, listener = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t length = sizeof(at);
	char byte = 'x';

	at.sin_family = AF_INET;
	if (argc != 2 || inet_pton(AF_INET, argv[1], &at.sin_addr) != 1)
		errx(1, "forked ADDRESS");
	if (listener < 0 || bind(listener, (struct sockaddr *)&at, sizeof(at)) || listen(listener, 8) ||
	    getsockname(listener, (struct sockaddr *)&at, &length))
		err(1, "listen");
	for (int i = 0; i < 3; i++) {
		fd = accepted(listener, &client);
		close(fd);
		close(client);
	}
	fd = accepted(listener, &client);
	close(client);
	switch (fork()) {
	case -1:
		err(1, "fork");
	case 0:
		if (write(fd, &byte, 1) != 1)
			err(1, "write");
		exit(0);
	}
	if (wait(&status) < 0 || status != 0)
		errx(1, "the child");
	return 0;
}
