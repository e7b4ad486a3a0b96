/* Does nothing, so that others can look at it. Built statically. */
#include <unistd.h>

int main(void)
{
	for (;;)
		pause();
}
