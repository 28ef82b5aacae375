/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Counters of a session.  Octets are those of IP packets, padding not counted.
 */
#ifndef PIPEX_COUNT_H
#define PIPEX_COUNT_H

#include "session.h"

INLINE void count_in(const struct flow *f, const struct packet *p)
{
	if (!(f->blocks & PIPEX_COUNT))
		return;
	__sync_fetch_and_add(&f->stats->in_packets, 1);
	__sync_fetch_and_add(&f->stats->in_bytes, p->size);
}

INLINE void count_out(const struct flow *f, const struct packet *p)
{
	if (!(f->blocks & PIPEX_COUNT))
		return;
	__sync_fetch_and_add(&f->stats->out_packets, 1);
	__sync_fetch_and_add(&f->stats->out_bytes, p->size);
}

/* Drop a frame of the peer, or one for it, for a reason. */
INLINE int drop_in(const struct flow *f, enum pipex_counter why, __u32 bytes)
{
	count(why, bytes);
	if (f->blocks & PIPEX_COUNT)
		__sync_fetch_and_add(&f->stats->in_errors, 1);
	return XDP_DROP;
}

INLINE int drop_out(const struct flow *f, enum pipex_counter why, __u32 bytes)
{
	count(why, bytes);
	if (f->blocks & PIPEX_COUNT)
		__sync_fetch_and_add(&f->stats->out_errors, 1);
	return XDP_DROP;
}

#endif
