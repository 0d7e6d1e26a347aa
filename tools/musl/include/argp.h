/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The names of argp that elfutils' lib/color.c and lib/printversion.c mention. musl has
 * no argp. Both files are compiled into a helper library of libelf, and nothing in
 * them is ever called or linked.
 */
#ifndef GLOWD_ARGP_H
#define GLOWD_ARGP_H

#include <errno.h>
#include <stdio.h>

typedef int error_t;

#define OPTION_ARG_OPTIONAL 1
#define ARGP_HELP_SEE 4
#define ARGP_ERR_UNKNOWN E2BIG

struct argp_state {
	char *name;
};

struct argp_option {
	const char *name;
	int key;
	const char *arg;
	int flags;
	const char *doc;
	int group;
};

struct argp {
	const struct argp_option *options;
	error_t (*parser)(int key, char *arg, struct argp_state *state);
	const char *args_doc;
	const char *doc;
	const void *children;
	void *help_filter;
	const char *domain;
};

void argp_help(const struct argp *argp, FILE *stream, unsigned int flags, char *name);

#endif
