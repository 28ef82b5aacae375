/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Checksums that their sender has left to its NIC.  A veth or tap device, which has no wire, hands such packets on as
 * they are; only the stack knows, and finishes them.
 */
#ifndef PIPEX_PARTIAL_H
#define PIPEX_PARTIAL_H

#include "sum.h"

/* Offset of the checksum of TCP and UDP. */
#define TCP_CHECK 16
#define UDP_CHECK 6

/*
 * Does the checksum cover the pseudo header alone?  Once in 65,536 a finished one looks the same, which does no harm:
 * the stack forwards that packet.
 */
INLINE bool partial(const struct packet *p)
{
	const struct iphdr *ip4 = p->ip;
	const struct ipv6hdr *ip6 = p->ip;
	__u32 at = p->protocol == PROTO_TCP ? TCP_CHECK : UDP_CHECK, sum;
	__be16 *check = p->ip + (p->header & 0x3f) + at;

	if (p->fragment || (p->protocol != PROTO_TCP && p->protocol != PROTO_UDP) ||
	    p->header + at + sizeof(*check) > p->size || (void *)(check + 1) > p->end)
		return false;
	sum = p->version == 4 ? sum_words(&ip4->saddr, 8) : sum_words(&ip6->saddr, 32);
	sum += bpf_htons(p->protocol) + bpf_htons(p->size - p->header);
	return *check == folded(sum);
}

#endif
