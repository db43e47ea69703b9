/* Starts another kernel in the place of the one that runs, as the command kexec
 * does, with nothing stopped or written back before: kexec KERNEL INITRD. The
 * kernel gets the command line of the one before.
 *
 * Source: kexec_file_load(2), reboot(2). */
#include <fcntl.h>
#include <linux/reboot.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static int failed(const char *what)
{
    perror(what);
    return 1;
}

int main(int argc, char **argv)
{
    char line[4096] = "";
    if (argc != 3) {
        fprintf(stderr, "usage: kexec KERNEL INITRD\n");
        return 2;
    }
    int from = open("/proc/cmdline", O_RDONLY);
    if (from < 0 || read(from, line, sizeof line - 1) < 0)
        return failed("/proc/cmdline");
    line[strcspn(line, "\n")] = 0;
    int kernel = open(argv[1], O_RDONLY), initrd = open(argv[2], O_RDONLY);
    if (kernel < 0 || initrd < 0)
        return failed("kernel or initrd");
    if (syscall(SYS_kexec_file_load, kernel, initrd, strlen(line) + 1, line, 0L))
        return failed("kexec_file_load");
    syscall(SYS_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_KEXEC, 0);
    return failed("reboot");
}
