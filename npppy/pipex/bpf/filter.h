/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Ingress filter: what the peer sends comes from its address or a network behind it.
 */
#ifndef PIPEX_FILTER_H
#define PIPEX_FILTER_H

#include "session.h"

INLINE bool same_net4(__be32 a, __be32 b, __u32 prefixlen)
{
	/* In 64 bits, since a shift of 32 by 32 is none. */
	return !((__u64)bpf_ntohl(a ^ b) >> (32 - prefixlen));
}

/* Whether packets for an address are for the session in a slot.  Of its own for the verifier. */
__attribute__((noinline)) int leads_to4(__be32 address, __u32 slot, __u32 generation)
{
	struct pipex_ref *ref = route4(address);

	return ref && ref->slot == slot && ref->generation == generation;
}

/* Whether a packet of the peer may pass. */
INLINE bool filter(const struct flow *f, const struct packet *p)
{
	const struct pipex_session *s = f->session;
	struct pipex_ref *ref;
	__be32 source;

	if (!(f->blocks & PIPEX_FILTER))
		return true;
	/* It may have several networks, and prefixes, framed and delegated; they all lead to it, as longest match. */
	if (p->version == 4) {
		source = ((struct iphdr *)p->ip)->saddr;
		return same_net4(source, s->address4, s->prefixlen4) || leads_to4(source, f->slot, f->generation);
	}
	ref = route6(&((struct ipv6hdr *)p->ip)->saddr);
	return ref && ref->slot == f->slot && ref->generation == f->generation;
}

#endif
