/*
 * A PKCS#11 library in front of SoftHSM that fails as it is told.
 *
 * The file beside it, NAME.so.fault, holds "FUNCTION WHAT": the place of the
 * function in CK_FUNCTION_LIST, from 0, and what happens when it is called:
 *
 *   a number   it returns this code, and does nothing
 *   hang       it does not return while the file says so
 *   short      what it gives out is one byte shorter than it should be
 *   nonce      the nonce of AES-GCM is another than it was given
 *   nogcm      the token has no AES-GCM
 *
 * Each login and each opening of a session is written down in NAME.so.calls.
 * With a file NAME.so.end, it crashes when the process runs its destructors.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SOFTHSM "/usr/lib/softhsm/libsofthsm2.so"
#define FUNCTIONS 68
enum { GET_FUNCTION_LIST = 3, GET_MECHANISM_LIST = 7, OPEN_SESSION = 12, LOGIN = 18 };

typedef unsigned long word;
typedef word function(word, word, word, word, word, word, word, word);

struct list {
    unsigned char version[2];
    function *at[FUNCTIONS];
};

static struct list *real, ours;

static FILE *beside(const char *suffix, const char *mode)
{
    Dl_info self;
    char path[4096];
    dladdr(&ours, &self);
    snprintf(path, sizeof path, "%s.%s", self.dli_fname, suffix);
    return fopen(path, mode);
}

__attribute__((destructor)) static void end(void)
{
    if (beside("end", "r"))
        abort();
}

/* What happens to function n: empty for nothing. */
static void fault_of(int n, char what[16])
{
    int which = -1;
    FILE *file = beside("fault", "r");
    if (file && (fscanf(file, "%d %15s", &which, what) != 2 || which != n))
        *what = 0;
    if (file)
        fclose(file);
    else
        *what = 0;
}

static word call(int n, word a, word b, word c, word d, word e, word f, word g, word h)
{
    char what[16];
    word code;
    if (n == LOGIN || n == OPEN_SESSION) {
        FILE *calls = beside("calls", "a");
        fprintf(calls, "%d\n", n);
        fclose(calls);
    }
    fault_of(n, what);
    while (!strcmp(what, "hang")) {
        usleep(10000);
        fault_of(n, what);
    }
    if (*what >= '0' && *what <= '9')
        return strtoul(what, NULL, 0);
    if (!strcmp(what, "nonce"))
        /* CK_MECHANISM.pParameter is a CK_GCM_PARAMS, which begins with pIv. */
        memset(*(void **)((void **)b)[1], 0x5a, 12);
    code = real->at[n](a, b, c, d, e, f, g, h);
    /* C_Encrypt and C_Decrypt: (session, data, length, *out, *out_length). */
    if (!strcmp(what, "short") && !code && d)
        --*(word *)e;
    if (!strcmp(what, "nogcm") && !code && b) {
        /* (slot, *mechanisms, *count) */
        word *mechanisms = (word *)b, *count = (word *)c, kept = 0, i;
        for (i = 0; i < *count; i++)
            if (mechanisms[i] != 0x1087)
                mechanisms[kept++] = mechanisms[i];
        *count = kept;
    }
    return code;
}

#define ONE(n)                                                                            \
    static word f##n(word a, word b, word c, word d, word e, word f, word g, word h)      \
    {                                                                                     \
        return call(n, a, b, c, d, e, f, g, h);                                           \
    }
#define TEN(n) ONE(n##0) ONE(n##1) ONE(n##2) ONE(n##3) ONE(n##4) ONE(n##5) ONE(n##6)      \
    ONE(n##7) ONE(n##8) ONE(n##9)
ONE(0) ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6) ONE(7) ONE(8) ONE(9)
TEN(1) TEN(2) TEN(3) TEN(4) TEN(5)
ONE(60) ONE(61) ONE(62) ONE(63) ONE(64) ONE(65) ONE(66) ONE(67)

#define TENTH(n) f##n##0, f##n##1, f##n##2, f##n##3, f##n##4, f##n##5, f##n##6, f##n##7,  \
    f##n##8, f##n##9
static function *const all[FUNCTIONS] = {
    f0, f1, f2, f3, f4, f5, f6, f7, f8, f9,
    TENTH(1), TENTH(2), TENTH(3), TENTH(4), TENTH(5),
    f60, f61, f62, f63, f64, f65, f66, f67,
};

word C_GetFunctionList(struct list **list)
{
    word (*theirs)(struct list **);
    void *library = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return 5; /* CKR_GENERAL_ERROR */
    *(void **)&theirs = dlsym(library, "C_GetFunctionList");
    theirs(&real);
    memcpy(ours.version, real->version, sizeof ours.version);
    memcpy(ours.at, all, sizeof all);
    ours.at[GET_FUNCTION_LIST] = real->at[GET_FUNCTION_LIST];
    *list = &ours;
    return 0;
}
