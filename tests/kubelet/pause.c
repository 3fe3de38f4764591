/* The program of the lab's images: waits, and ends when it is told to. */
#include <signal.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(0);
}

int main(void) {
  signal(SIGTERM, end);
  for (;;)
    pause();
}
