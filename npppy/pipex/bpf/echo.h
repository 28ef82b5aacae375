/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * LCP's Echo-Request answered and Echo-Reply noted (RFC 1661 section 5.8).
 */
#ifndef PIPEX_ECHO_H
#define PIPEX_ECHO_H

#include "count.h"
#include "mirror.h"

#define LCP_ECHO_REQUEST 9
#define LCP_ECHO_REPLY 10

/* The peer's answer has been noted: no verdict of XDP's, but in the place of one. */
#define LCP_HEARD XDP_ABORTED

struct lcp_echo {
	__u8 code;
	__u8 id;
	__be16 length;
	__be32 magic;
};

INLINE int to_control(__u32 bytes)
{
	count(PIPEX_C_PUNT_CONTROL, bytes);
	return XDP_PASS;
}

INLINE int too_many(__u32 bytes)
{
	count(PIPEX_C_DROP_POLICE, bytes);
	return XDP_DROP;
}

/*
 * An LCP packet, which has size octets: what is not an echo as it should be goes to npppyd.  XDP_TX: it has become the
 * answer, and is to leave by a device, where it can.
 */
INLINE int lcp(struct lcp_echo *echo, const struct flow *f, __u32 size, __u32 ifindex, __u32 bytes, __u64 now)
{
	const struct pipex_session *s = f->session;
	struct pipex_config *cfg;
	__u32 shared = s->shared;

	if (!(f->blocks & PIPEX_ECHO) || !echo || size < sizeof(*echo) || bpf_ntohs(echo->length) != size)
		return to_control(bytes);
	if (echo->code == LCP_ECHO_REPLY && echo->magic == s->peer_magic) {
		count(PIPEX_C_ECHO, bytes);
		return LCP_HEARD;
	}
	if (echo->code != LCP_ECHO_REQUEST || size > s->mtu)
		return to_control(bytes);
	if (s->magic && echo->magic == s->magic) {
		__sync_fetch_and_add(&f->stats->looped, 1);
		return to_control(bytes);
	}
	if (!bpf_map_lookup_elem(&devs, &ifindex))
		return to_control(bytes);
	cfg = bpf_map_lookup_elem(&config, &shared);
	/* Those in between get no answer: whoever sends so many cannot miss them. */
	if (!cfg || (__s64)(now - f->stats->echo_ns) < cfg->echo_interval_ns)
		return too_many(bytes);
	f->stats->echo_ns = now;
	echo->code = LCP_ECHO_REPLY;
	echo->magic = s->magic;
	count(PIPEX_C_ECHO, bytes);
	return XDP_TX;
}

/* The same in a frame of PPPoE, which goes back to where it came from. */
INLINE int pppoe_lcp(struct xdp_md *ctx, struct cursor *c, const struct frame *frame, const struct flow *f, __u32 size,
		     __u32 bytes, __u64 now)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct lcp_echo *echo = take(c, sizeof(*echo));
	__u8 ours[ETH_ALEN];
	/* Where nothing can be redirected, XDP_TX may be lost too: on a veth device whose peer has no GRO. */
	int verdict = lcp(echo, f, size, ifindex, bytes, now);

	if (verdict != XDP_TX)
		return verdict == LCP_HEARD ? XDP_DROP : verdict;
	__builtin_memcpy(ours, frame->eth->h_dest, ETH_ALEN);
	__builtin_memcpy(frame->eth->h_dest, frame->eth->h_source, ETH_ALEN);
	__builtin_memcpy(frame->eth->h_source, ours, ETH_ALEN);
	mirror(ctx, f, PIPEX_DOWN);
	/* As other frames for the peer: XDP_TX does not wake the peer of a veth device. */
	return bpf_redirect_map(&devs, ifindex, XDP_TX);
}

#endif
