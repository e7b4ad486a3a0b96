/* Prints its arguments, or "ran": who reads it knows that it was executed. Built statically. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	const char *told = getenv("SAY");

	for (int i = 1; i < argc; i++)
		printf("%s ", argv[i]);
	if (told)
		printf("told %s ", told);
	puts("ran");
	return 0;
}
