/*
 * A PKCS#11 module for tests. It forwards every call to a real module, so that its cryptography is real, and does what
 * no free token does by itself: it locks PINs, refuses mechanisms, hangs, crashes, or returns any value that a test
 * wants. Three environment variables configure it:
 *
 *	SOFTHSMTEST_FAULT_MODULE  the real module
 *	SOFTHSMTEST_FAULT_SCRIPT  the script; read again at each call, so that a test can change it at any time
 *	SOFTHSMTEST_FAULT_LOG     receives one line for each call, with the name of the function
 *
 * A line of the script is FUNCTION WHICH ACTION. FUNCTION is a name ("C_Sign") or "*". WHICH is a number (3: the third
 * call of this function since the script was set), a number and "+" (3+: the third and all later calls) or "*" for every
 * call. All lines that match apply, in their order, up to the first that returns. The actions:
 *
 *	return CODE        return this value without calling the real module
 *	after CODE         call the real module, and return this value whatever it returned
 *	crash              die of SIGSEGV
 *	hang               wait until the line is removed from the script, then go on
 *	sleep MS           wait, then go on
 *	mechanism M CODE   return CODE if the call (C_SignInit, C_GetMechanismInfo) is about mechanism M
 *	without BITS CODE  return CODE if the flags of C_OpenSession lack these bits
 *	locking CODE       return CODE if C_Initialize is asked for locking (CKF_OS_LOCKING_OK)
 *	reserved TEXT CODE return CODE unless pReserved of C_Initialize is this text
 *	alone CODE         return CODE if another call is in the module at the same time
 *	flags BITS         call the real module, then set these bits in the flags of C_GetTokenInfo
 *	info OFFSET HEX    call the real module, then write up to 11 bytes into what C_GetInfo or C_GetTokenInfo returns
 *	attribute T VALUE  call the real module, then return VALUE for attribute T of C_GetAttributeValue: bytes in hex,
 *	                   "*N" for N bytes 'x', or nothing for an empty value
 *	length N           call the real module, then return this length from C_Sign or this count from C_FindObjects
 *	pad PIN            as a token with a PIN pad: an empty PIN of C_Login becomes this PIN
 *	pins N             as a token that locks its PIN after N wrong ones: C_Login, with flags in C_GetTokenInfo
 *	closeall           call C_CloseAllSessions of the slot of the first session that was opened, then go on
 *
 * The line "since N" says where in the log, in bytes, the calls of this script begin. All numbers are as in C.
 *
 * "hang" and "sleep" come before the call of the real module, so that many calls can hang at the same time.
 *
 * All functions are handled alike: each has at most eight arguments, and each argument is an integer or a pointer that
 * fills a register or a slot of the stack, on every 64-bit system that this is built for.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t (*function)(ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t, ulong_t);

/* The functions in the order of CK_FUNCTION_LIST, PKCS#11 2.40. */
#define FUNCTIONS(X) \
	X(0, C_Initialize) X(1, C_Finalize) X(2, C_GetInfo) X(3, C_GetFunctionList) X(4, C_GetSlotList) \
	X(5, C_GetSlotInfo) X(6, C_GetTokenInfo) X(7, C_GetMechanismList) X(8, C_GetMechanismInfo) X(9, C_InitToken) \
	X(10, C_InitPIN) X(11, C_SetPIN) X(12, C_OpenSession) X(13, C_CloseSession) X(14, C_CloseAllSessions) \
	X(15, C_GetSessionInfo) X(16, C_GetOperationState) X(17, C_SetOperationState) X(18, C_Login) X(19, C_Logout) \
	X(20, C_CreateObject) X(21, C_CopyObject) X(22, C_DestroyObject) X(23, C_GetObjectSize) \
	X(24, C_GetAttributeValue) X(25, C_SetAttributeValue) X(26, C_FindObjectsInit) X(27, C_FindObjects) \
	X(28, C_FindObjectsFinal) X(29, C_EncryptInit) X(30, C_Encrypt) X(31, C_EncryptUpdate) X(32, C_EncryptFinal) \
	X(33, C_DecryptInit) X(34, C_Decrypt) X(35, C_DecryptUpdate) X(36, C_DecryptFinal) X(37, C_DigestInit) \
	X(38, C_Digest) X(39, C_DigestUpdate) X(40, C_DigestKey) X(41, C_DigestFinal) X(42, C_SignInit) X(43, C_Sign) \
	X(44, C_SignUpdate) X(45, C_SignFinal) X(46, C_SignRecoverInit) X(47, C_SignRecover) X(48, C_VerifyInit) \
	X(49, C_Verify) X(50, C_VerifyUpdate) X(51, C_VerifyFinal) X(52, C_VerifyRecoverInit) X(53, C_VerifyRecover) \
	X(54, C_DigestEncryptUpdate) X(55, C_DecryptDigestUpdate) X(56, C_SignEncryptUpdate) \
	X(57, C_DecryptVerifyUpdate) X(58, C_GenerateKey) X(59, C_GenerateKeyPair) X(60, C_WrapKey) X(61, C_UnwrapKey) \
	X(62, C_DeriveKey) X(63, C_SeedRandom) X(64, C_GenerateRandom) X(65, C_GetFunctionStatus) \
	X(66, C_CancelFunction) X(67, C_WaitForSlotEvent)

enum { COUNT = 68, FINALIZE = 1, INFO = 2, TOKEN_INFO = 6, OPEN_SESSION = 12, CLOSE_ALL = 14, LOGIN = 18, SIGN_INIT = 42, SIGN = 43 };

#define CKR_OK 0x0UL
#define CKR_GENERAL_ERROR 0x5UL
#define CKR_PIN_INCORRECT 0xA0UL
#define CKR_PIN_LOCKED 0xA4UL
#define CKR_BUFFER_TOO_SMALL 0x150UL
#define CKF_OS_LOCKING_OK 0x2UL
#define CKF_USER_PIN_COUNT_LOW 0x10000UL
#define CKF_USER_PIN_FINAL_TRY 0x20000UL
#define CKF_USER_PIN_LOCKED 0x40000UL

#define NAME(i, n) #n,
static const char *const names[COUNT] = {FUNCTIONS(NAME)};

struct list {
	struct { unsigned char major, minor; } version;
	function f[COUNT];
};

static struct list *real; /* of the real module */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int inside;        /* calls that are in the module now */
static ulong_t slot;      /* of the first session */

static void load(void)
{
	const char *path = getenv("SOFTHSMTEST_FAULT_MODULE");
	void *lib = path ? dlopen(path, RTLD_NOW) : NULL;
	ulong_t (*get)(struct list **) = lib ? (ulong_t (*)(struct list **))dlsym(lib, "C_GetFunctionList") : NULL;
	if (!get || get(&real) != CKR_OK)
		real = NULL;
}

/* count returns how many lines of a file, from a byte on, are this word. */
static ulong_t count(FILE *f, long from, const char *word)
{
	char line[128];
	ulong_t n = 0;
	if (fseek(f, from, SEEK_SET))
		return 0;
	while (fgets(line, sizeof line, f)) {
		line[strcspn(line, "\n")] = 0;
		n += !strcmp(line, word);
	}
	return n;
}

/* note adds a line to the log, and counts the same lines from a byte on. Other processes write to it too. */
static ulong_t note(const char *word, long from)
{
	const char *path = getenv("SOFTHSMTEST_FAULT_LOG");
	FILE *f = path ? fopen(path, "a+e") : NULL;
	ulong_t n = 0;
	if (!f)
		return 0;
	flock(fileno(f), LOCK_EX);
	fprintf(f, "%s\n", word);
	fflush(f);
	if (from >= 0)
		n = count(f, from, word);
	fclose(f);
	return n;
}

/* wrong returns how many PINs were refused since the last good one. */
static ulong_t wrong(void)
{
	const char *path = getenv("SOFTHSMTEST_FAULT_LOG");
	FILE *f = path ? fopen(path, "re") : NULL;
	char line[128];
	ulong_t n = 0;
	if (!f)
		return 0;
	while (fgets(line, sizeof line, f)) {
		if (!strcmp(line, "pin wrong\n"))
			n++;
		else if (!strcmp(line, "pin right\n"))
			n = 0;
	}
	fclose(f);
	return n;
}

struct rule { char name[32], which[16], action[16], first[24], second[24]; };

/* script calls each with the rules of the script, until it returns true. */
static int script(int (*each)(const struct rule *, void *), void *arg)
{
	const char *path = getenv("SOFTHSMTEST_FAULT_SCRIPT");
	FILE *f = path ? fopen(path, "re") : NULL;
	char line[256];
	int done = 0;
	if (!f)
		return 0;
	while (!done && fgets(line, sizeof line, f)) {
		struct rule r = {"", "", "", "", ""};
		if (sscanf(line, "%31s %15s %15s %23s %23s", r.name, r.which, r.action, r.first, r.second) >= 2)
			done = each(&r, arg);
	}
	fclose(f);
	return done;
}

static int since(const struct rule *r, void *from)
{
	if (strcmp(r->name, "since"))
		return 0;
	*(long *)from = strtol(r->which, NULL, 0);
	return 1;
}

/* call is one call on its way to the real module. */
struct call {
	int i;            /* which function */
	ulong_t n;        /* number of the call, from 1 */
	const ulong_t *a; /* its arguments */
	ulong_t rv;       /* its return value */
	ulong_t after;    /* its return value, if replace */
	ulong_t flags;    /* to be set in CK_TOKEN_INFO */
	ulong_t pins;     /* limit of wrong PINs; 0: none */
	int replace;
	int cut;          /* length is to be returned */
	ulong_t length;
	char pad[24];     /* the PIN of a PIN pad; "": none */
	int lies;         /* how many attributes are in lie */
	struct lie { ulong_t type; char value[24]; } lie[4], info[4];
	int infos;        /* how many places are in info */
	ulong_t room[32]; /* the sizes of the caller's buffers */
	struct rule hang;
};

struct attribute { ulong_t type; unsigned char *value; ulong_t size; };

static int number(const char *s, ulong_t *v)
{
	char *end;
	*v = strtoul(s, &end, 0);
	return end != s;
}

static int fits(const struct rule *r, const struct call *c)
{
	ulong_t n;
	if (strcmp(r->name, "*") && strcmp(r->name, names[c->i]))
		return 0;
	if (!strcmp(r->which, "*"))
		return 1;
	return number(r->which, &n) && (c->n == n || (c->n > n && strchr(r->which, '+')));
}

/* same finds the rule that a hanging call waits for. */
static int same(const struct rule *r, void *arg) { return !memcmp(r, arg, sizeof *r); }

/* reserved checks and removes pReserved of CK_C_INITIALIZE_ARGS. It returns true if that is not the text. */
static int reserved(const ulong_t *a, const char *text)
{
	char **p = a[0] ? &((char **)a[0])[5] : NULL;
	int other = !p || !*p || strcmp(*p, text);
	if (p)
		*p = NULL;
	return other;
}

/* apply applies a rule to a call. It returns true if the call must not reach the real module. */
static int apply(const struct rule *r, void *arg)
{
	struct call *c = arg;
	const ulong_t *a = c->a;
	ulong_t x = 0, code = 0;
	number(r->first, &x);
	number(r->second, &code);
	if (!strcmp(r->action, "pins") && c->i == TOKEN_INFO)
		c->pins = x;
	if (!fits(r, c))
		return 0;
	if (!strcmp(r->action, "pins")) {
		c->pins = x;
	} else if (!strcmp(r->action, "return")) {
		c->rv = x;
		return 1;
	} else if (!strcmp(r->action, "after")) {
		c->replace = 1;
		c->after = x;
	} else if (!strcmp(r->action, "crash")) {
		signal(SIGSEGV, SIG_DFL); /* not the Go runtime's handler, which prints stacks */
		raise(SIGSEGV);
	} else if (!strcmp(r->action, "hang")) {
		c->hang = *r;
	} else if (!strcmp(r->action, "sleep")) {
		usleep(x * 1000);
	} else if (!strcmp(r->action, "flags")) {
		c->flags |= x;
	} else if (!strcmp(r->action, "attribute") && c->lies < 4) {
		c->lie[c->lies].type = x;
		strcpy(c->lie[c->lies++].value, r->second);
	} else if (!strcmp(r->action, "info") && c->infos < 4) {
		c->info[c->infos].type = x;
		strcpy(c->info[c->infos++].value, r->second);
	} else if (!strcmp(r->action, "length")) {
		c->cut = 1;
		c->length = x;
	} else if (!strcmp(r->action, "pad")) {
		strcpy(c->pad, r->first);
	} else if (!strcmp(r->action, "closeall")) {
		real->f[CLOSE_ALL](slot, 0, 0, 0, 0, 0, 0, 0);
	} else if ((!strcmp(r->action, "mechanism") && (c->i == SIGN_INIT ? *(const ulong_t *)a[1] : a[1]) == x) ||
		   (!strcmp(r->action, "without") && !(a[1] & x)) || (!strcmp(r->action, "reserved") && reserved(a, r->first))) {
		c->rv = code;
		return 1;
	} else if ((!strcmp(r->action, "locking") && a[0] && ((const ulong_t *)a[0])[4] & CKF_OS_LOCKING_OK) ||
		   (!strcmp(r->action, "alone") && __atomic_load_n(&inside, __ATOMIC_SEQ_CST) > 1)) {
		c->rv = x;
		return 1;
	}
	return 0;
}

/* pretend sets an attribute to the value of a lie, as a module would: a NULL pointer asks for the size only. */
static void pretend(struct attribute *a, const char *value, ulong_t room)
{
	ulong_t n = strlen(value) / 2, byte = 'x';
	if (*value == '*')
		number(value + 1, &n);
	for (ulong_t i = 0; a->value && i < n && i < room; i++) {
		if (*value != '*')
			sscanf(value + 2 * i, "%2lx", &byte);
		a->value[i] = byte;
	}
	a->size = n;
}

static void lie(struct call *c, ulong_t *rv)
{
	struct attribute *t = (struct attribute *)c->a[2];
	for (ulong_t i = 0; i < c->a[3] && i < 32; i++)
		for (int j = 0; j < c->lies; j++)
			if (t[i].type == c->lie[j].type) {
				pretend(&t[i], c->lie[j].value, c->room[i]);
				if (*rv == CKR_BUFFER_TOO_SMALL)
					*rv = CKR_OK; /* the buffer has the size of the lie */
			}
}

static ulong_t forward(struct call *c)
{
	const ulong_t *a = c->a;
	ulong_t rv, pad[8];
	if (*c->pad && !a[3]) {
		memcpy(pad, a, sizeof pad);
		pad[2] = (ulong_t)c->pad;
		pad[3] = strlen(c->pad);
		a = pad;
	}
	if (c->i == LOGIN && c->pins && wrong() >= c->pins)
		return CKR_PIN_LOCKED;
	for (ulong_t i = 0; c->lies && i < a[3] && i < 32; i++)
		c->room[i] = ((struct attribute *)a[2])[i].size;
	rv = real->f[c->i](a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
	if (c->i == OPEN_SESSION && rv == CKR_OK && !slot)
		slot = a[0];
	if (c->i == FINALIZE)
		slot = 0;
	if (c->lies)
		lie(c, &rv);
	if (c->cut && rv == CKR_OK)
		*(ulong_t *)a[c->i == SIGN ? 4 : 3] = c->length;
	if (c->i == LOGIN && c->pins && rv == CKR_PIN_INCORRECT)
		note("pin wrong", -1);
	if (c->i == LOGIN && c->pins && rv == CKR_OK)
		note("pin right", -1);
	if (c->i == TOKEN_INFO && rv == CKR_OK) {
		/* CK_TOKEN_INFO begins with 32 + 32 + 16 + 16 bytes of text. */
		ulong_t *flags = (ulong_t *)(a[1] + 96), n = c->pins ? wrong() : 0;
		*flags |= c->flags;
		if (n)
			*flags |= CKF_USER_PIN_COUNT_LOW;
		if (n && n + 1 == c->pins)
			*flags |= CKF_USER_PIN_FINAL_TRY;
		if (n && n >= c->pins)
			*flags |= CKF_USER_PIN_LOCKED;
	}
	for (int j = 0; j < c->infos && rv == CKR_OK; j++) {
		unsigned char *at = (unsigned char *)a[c->i == INFO ? 0 : 1] + c->info[j].type;
		struct attribute place = {0, at, 0};
		pretend(&place, c->info[j].value, sizeof c->info[j].value);
	}
	return c->replace ? c->after : rv;
}

static ulong_t handle(int i, const ulong_t *a)
{
	struct call c = {.i = i, .a = a};
	long from = 0;
	if (!real)
		return CKR_GENERAL_ERROR;
	__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST);
	script(since, &from);
	c.n = note(names[i], from);
	if (!script(apply, &c)) {
		while (c.hang.name[0] && script(same, &c.hang))
			usleep(5000);
		c.rv = forward(&c);
	}
	__atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
	return c.rv;
}

#define DEFINE(i, n) \
	static ulong_t call_##n(ulong_t a, ulong_t b, ulong_t c, ulong_t d, ulong_t e, ulong_t f, ulong_t g, ulong_t h) \
	{ \
		const ulong_t args[] = {a, b, c, d, e, f, g, h}; \
		return handle(i, args); \
	}
FUNCTIONS(DEFINE)

#define ENTRY(i, n) call_##n,
static struct list ours = {{2, 40}, {FUNCTIONS(ENTRY)}};

__attribute__((visibility("default"))) ulong_t C_GetFunctionList(struct list **list)
{
	pthread_once(&once, load);
	*list = &ours;
	return real ? CKR_OK : CKR_GENERAL_ERROR;
}
