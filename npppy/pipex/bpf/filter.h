/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Ingress filter: what the peer sends comes from its address or a network behind it.
 */
#ifndef PIPEX_FILTER_H
#define PIPEX_FILTER_H

#include "session.h"

/* The leading octets of 64, as a mask of so many bits, 0 to 64. */
INLINE __u64 mask64(__u32 bits)
{
	/* A shift by 64 is none. */
	return bits ? ~0ull << (64 - bits) : 0;
}

INLINE bool same_net4(__be32 a, __be32 b, __u32 prefixlen)
{
	__u64 difference = (__u64)bpf_ntohl(a ^ b) << 32;

	return !(difference & mask64(prefixlen));
}

INLINE __u64 half6(const void *address, __u32 at)
{
	__be64 half;

	__builtin_memcpy(&half, address + at, sizeof(half));
	return bpf_be64_to_cpu(half);
}

INLINE bool same_net6(const void *a, const void *b, __u32 prefixlen)
{
	__u32 high = prefixlen < 64 ? prefixlen : 64;

	return !((half6(a, 0) ^ half6(b, 0)) & mask64(high)) &&
	       !((half6(a, 8) ^ half6(b, 8)) & mask64(prefixlen - high));
}

/* Whether a packet of the peer may pass. */
INLINE bool filter(const struct flow *f, const struct packet *p)
{
	const struct pipex_session *s = f->session;

	if (!(f->blocks & PIPEX_FILTER))
		return true;
	if (p->version == 4)
		return same_net4(((struct iphdr *)p->ip)->saddr, s->address4, s->prefixlen4);
	return same_net6(&((struct ipv6hdr *)p->ip)->saddr, s->address6, s->prefixlen6);
}

#endif
