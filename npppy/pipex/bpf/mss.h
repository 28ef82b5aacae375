/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The MSS of TCP: what is announced must go through the session in one packet (RFC 6691).
 */
#ifndef PIPEX_MSS_H
#define PIPEX_MSS_H

#include <linux/tcp.h>

#include "session.h"

#define TCP_EOL 0
#define TCP_NOP 1
#define TCP_MSS 2
/* The header of TCP alone, and with all the options it may have. */
#define TCP_HEADER 20
#define TCP_HEADER_MAX 60
/* Where TCP begins in a frame, at the most. */
#define TCP_AT_MAX (ETH_HLEN + 60)

/* The checksum with a word of its data replaced: RFC 1624, equation 3. */
INLINE __sum16 replaced(__sum16 check, __u16 old, __u16 new)
{
	__u32 sum = (__u16)~check + (__u16)~old + new;

	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/*
 * Lower the MSS option of the SYN that begins at an offset of the frame, and has so many octets, to a limit.  Of its
 * own for the verifier: it looks at the loop once, whatever led to it.
 */
__attribute__((noinline)) int clamp_mss(struct xdp_md *ctx, __u32 at, __u32 size, __u32 limit)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct tcphdr *tcp;
	__u8 *option;
	__u32 stop, next;
	__u16 old, new = limit;

	if (!ctx || at > TCP_AT_MAX)
		return 0;
	tcp = data + at;
	if ((void *)(tcp + 1) > end || size < TCP_HEADER || !tcp->syn)
		return 0;
	stop = tcp->doff * 4;
	if (stop > size)
		stop = size;
	next = TCP_HEADER;
	for (int i = 0; i < TCP_HEADER_MAX - TCP_HEADER; i++) {
		/* For the verifier: in every turn it is one of the same numbers, whatever the options before. */
		next &= 127;
		barrier_var(next);
		if (next + 4 > stop)
			return 0;
		option = data + at + next;
		if (option + 4 > (__u8 *)end)
			return 0;
		if (option[0] == TCP_NOP) {
			next++;
			continue;
		}
		if (option[0] == TCP_MSS && option[1] == 4) {
			old = option[2] << 8 | option[3];
			if (old <= limit)
				return 0;
			option[2] = limit >> 8;
			option[3] = limit;
			/* Where it straddles two of the words that the checksum adds up. */
			if (next & 1) {
				old = old << 8 | old >> 8;
				new = new << 8 | new >> 8;
			}
			tcp->check = replaced(tcp->check, bpf_htons(old), bpf_htons(new));
			return 1;
		}
		if (option[0] == TCP_EOL || option[1] < 2 || option[1] > TCP_HEADER_MAX - TCP_HEADER)
			return 0;
		next += option[1];
	}
	return 0;
}

/* mtu: the largest packet that the receiver of the announcement may send. */
INLINE void mss(struct xdp_md *ctx, const struct flow *f, const struct packet *p, __u32 mtu)
{
	__u32 headers = TCP_HEADER + (p->version == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr));

	if (f->blocks & PIPEX_MSS && p->protocol == PROTO_TCP && p->first && mtu > headers)
		clamp_mss(ctx, ETH_HLEN + p->header, p->size - p->header, mtu - headers);
}

#endif
