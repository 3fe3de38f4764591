/* The program of the lab's images: waits until a signal ends it; with the argument "done" it ends at
   once. */
#include <signal.h>
#include <string.h>
#include <unistd.h>

static void end(int signal) {
  (void)signal;
  _exit(0);
}

int main(int count, char **arguments) {
  if (count > 1 && strcmp(arguments[1], "done") == 0)
    return 0;
  signal(SIGTERM, end);
  for (;;)
    pause();
}
