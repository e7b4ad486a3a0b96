/* Prints that it ran, with the name by which an attempt knows that it was this program and not another one. Built statically. */
#include <stdio.h>

int main(void)
{
	puts("denied-ran");
	return 0;
}
