/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * The Internet's checksum (RFC 1071).  Words of the wire are added as they are: the sum is the same in any order of
 * octets.
 */
#ifndef PIPEX_SUM_H
#define PIPEX_SUM_H

#include "parse.h"

INLINE __u32 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

INLINE __u32 sum_words(const void *at, __u32 octets)
{
	const __be16 *word = at;
	__u32 sum = 0;

#pragma unroll
	for (__u32 i = 0; i < octets / 2; i++)
		sum += word[i];
	return sum;
}

/* Of an IPv4 header without options. */
INLINE bool checksum_right(const struct iphdr *ip)
{
	return folded(sum_words(ip, sizeof(*ip))) == 0xffff;
}

/* What the kernel adds up at once: Linux 6.1 no more. */
#define SUM_CHUNK 512
/* Where in a frame something may be that is added up. */
#define SUM_AT 0x7fff

/* Add the next octets of the frame. */
#define ADD_OCTETS(octets)                                              \
	do {                                                            \
		/* For the verifier: whatever was added before. */      \
		at &= SUM_AT;                                           \
		barrier_var(at);                                        \
		chunk = (void *)(long)ctx->data + at;                   \
		if (chunk + (octets) > (void *)(long)ctx->data_end)     \
			return -1;                                      \
		sum = bpf_csum_diff(NULL, 0, chunk, octets, sum);       \
		at += octets;                                           \
	} while (0)

/* The sum, in 16 bits, of so many octets of the frame from an offset on; -1: there are not so many. */
__attribute__((noinline)) int sum_frame(struct xdp_md *ctx, __u32 at, __u32 octets)
{
	void *chunk;
	__u32 sum = 0;
	__u64 whole;

	if (!ctx)
		return -1;
	for (int i = 0; i < SUM_AT / SUM_CHUNK && octets >= SUM_CHUNK; i++) {
		ADD_OCTETS(SUM_CHUNK);
		octets -= SUM_CHUNK;
	}
	if (octets >= SUM_CHUNK)
		return -1;
#pragma unroll
	for (int size = SUM_CHUNK / 2; size >= 4; size /= 2)
		if (octets & size)
			ADD_OCTETS(size);
	whole = sum;
	at &= SUM_AT;
	barrier_var(at);
	chunk = (void *)(long)ctx->data + at;
	if (octets & 2) {
		if (chunk + 2 > (void *)(long)ctx->data_end)
			return -1;
		whole += *(__u16 *)chunk;
		chunk += 2;
	}
	if (octets & 1) {
		if (chunk + 1 > (void *)(long)ctx->data_end)
			return -1;
		/* The first of two. */
		whole += bpf_htons(*(__u8 *)chunk << 8);
	}
	return folded((whole & 0xffffffff) + (whole >> 32));
}

#endif
