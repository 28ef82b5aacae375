/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * pipex: the data of established sessions.
 *
 *   pipex_access	XDP of an access NIC: from the peer, to npx0 by way of npx1, or to a core NIC
 *   pipex_core		XDP of npx1: from the stack by way of npx0, to the peer
 *   pipex_nic		XDP of a core NIC: to the peer, if its session is fast
 *   pipex_miss		tc ingress of npx1: what pipex_core leaves to npppyd, to its tun, and frames for NICs that
 *			take none from XDP
 *
 * What pipex_access passes reaches npppyd's packet sockets.  On an access NIC and a core NIC whatever is not pipex's
 * passes untouched.
 */
#include <linux/pkt_cls.h>

#include "count.h"
#include "echo.h"
#include "encap.h"
#include "fast.h"
#include "filter.h"
#include "idle.h"
#include "mirror.h"
#include "mss.h"
#include "parse.h"
#include "partial.h"
#include "pipex.h"
#include "police.h"
#include "session.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

INLINE int send(__u32 ifindex, enum pipex_counter path, __u32 bytes)
{
	int verdict = bpf_redirect_map(&devs, ifindex, XDP_DROP);

	count(verdict == XDP_REDIRECT ? path : PIPEX_C_TX_FAIL, bytes);
	return verdict;
}

/*
 * To a peer, from npx1.  devs lacks the interfaces whose drivers take no frames from XDP: pipex_miss sends there, by
 * the interface's own queue; its index goes in front of the frame.
 */
INLINE int leave(struct xdp_md *ctx, __u32 ifindex, __u32 bytes)
{
	int verdict = bpf_redirect_map(&devs, ifindex, XDP_PASS);
	__u32 *out;

	if (verdict == XDP_PASS) {
		if (!ifindex || bpf_xdp_adjust_meta(ctx, -(int)sizeof(*out)))
			goto fail;
		out = (void *)(long)ctx->data_meta;
		if ((void *)(out + 1) > (void *)(long)ctx->data)
			goto fail;
		*out = ifindex;
	}
	count(PIPEX_C_STACK_DOWN, bytes);
	return verdict;
fail:
	count(PIPEX_C_TX_FAIL, bytes);
	return XDP_DROP;
}

/* An IP packet of the peer, behind an Ethernet header yet to be written; at most room octets of it. */
INLINE int up(struct xdp_md *ctx, const struct flow *f, __u8 version, __u32 room, __u64 now)
{
	const struct pipex_session *s = f->session;
	__u32 shared = s->shared, size;
	struct pipex_config *cfg = bpf_map_lookup_elem(&config, &shared);
	struct packet p;
	struct ethhdr *eth;

	if (!cfg || !read_ip(ctx, version, room, &p))
		return drop_in(f, PIPEX_C_DROP_MALFORMED, room);
	if (!filter(f, &p))
		return drop_in(f, PIPEX_C_DROP_FILTER, p.size);
	if (!police(f, PIPEX_UP, p.size))
		return drop_in(f, PIPEX_C_DROP_POLICE, p.size);
	mss(ctx, f, &p, s->mtu);
	count_in(f, &p);
	idle(f, &p, now);
	if (forward(ctx, f, &p, cfg->npx0, now)) {
		size = ETH_HLEN + p.size;
		if (!resize(ctx, size < ETH_ZLEN ? ETH_ZLEN : size))
			return drop_in(f, PIPEX_C_TX_FAIL, p.size);
		count(PIPEX_C_FAST_UP, p.size);
		return XDP_REDIRECT;
	}
	eth = p.ip - ETH_HLEN;
	__builtin_memcpy(eth->h_dest, cfg->npx0_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, cfg->npx1_mac, ETH_ALEN);
	eth->h_proto = version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return send(cfg->npx1, PIPEX_C_STACK_UP, p.size);
}

SEC("xdp")
int pipex_access(struct xdp_md *ctx)
{
	struct cursor c = cursor_open(ctx);
	__u32 bytes = left(&c), need, room, size;
	struct frame frame = {};
	struct ipv6hdr *ip6;
	struct flow f;
	__be16 *protocol;
	__u8 version;
	__u64 now;

	if (!read_pppoe(&c, ctx->ingress_ifindex, &frame))
		return XDP_PASS;
	if (!find(bpf_map_lookup_elem(&sessions, &frame.key), &f, bytes))
		return XDP_PASS;
	/* A NIC that is promiscuous, or a switch that floods, has others' frames too. */
	if (!same_mac(frame.eth->h_dest, f.session->encap + ETH_ALEN))
		return XDP_PASS;
	now = bpf_ktime_get_coarse_ns();
	heard(&f, now);
	mirror(ctx, &f, PIPEX_UP);
	if (f.blocks & PIPEX_USER) {
		count(PIPEX_C_USER_UP, bytes);
		return XDP_PASS;
	}
	room = left(&c);
	protocol = take(&c, sizeof(*protocol));
	if (!protocol || frame.length > room || frame.length < sizeof(*protocol))
		return drop_in(&f, PIPEX_C_DROP_MALFORMED, bytes);
	size = frame.length - sizeof(*protocol);
	switch (bpf_ntohs(*protocol)) {
	case PPP_IP:
		version = 4;
		need = PIPEX_IP4;
		break;
	case PPP_IPV6:
		version = 6;
		need = PIPEX_IP6;
		break;
	case PPP_LCP:
		return lcp(ctx, &c, &frame, &f, size, bytes, now);
	default:
		return to_control(bytes);
	}
	if (!(f.blocks & need))
		return drop_in(&f, PIPEX_C_DROP_PROTOCOL, bytes);
	if (version == 6) {
		ip6 = take(&c, sizeof(*ip6));
		/* Router solicitations, DHCPv6 and the like. */
		if (ip6 && link_scope(ip6))
			return to_control(bytes);
	}
	if (!decapsulate(ctx, frame.header + sizeof(*protocol)))
		return drop_in(&f, PIPEX_C_TX_FAIL, bytes);
	return up(ctx, &f, version, size, now);
}

/* What an Ethernet frame says of the session it is for. */
struct outgoing {
	struct ethhdr *eth;
	struct pipex_ref *ref;
	__u32 room;
	__u8 version;
};

/* False: not IP. */
INLINE bool read_outgoing(struct xdp_md *ctx, struct outgoing *o)
{
	struct cursor c = cursor_open(ctx);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct iphdr *ip4;
	struct ipv6hdr *ip6;

	if (!eth)
		return false;
	o->eth = eth;
	o->room = left(&c);
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		ip4 = take(&c, sizeof(*ip4));
		o->version = 4;
		o->ref = ip4 ? route4(ip4->daddr) : NULL;
		return ip4;
	}
	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		ip6 = take(&c, sizeof(*ip6));
		o->version = 6;
		o->ref = ip6 ? route6(&ip6->daddr) : NULL;
		return ip6;
	}
	return false;
}

/*
 * Of the stack, to a peer that talks to another by way of npx0: as if both were on one link.  Redirects of others are
 * never forwarded (RFC 1812 section 5.2.7.2), so none is meant for a peer.
 */
INLINE bool redirects(const struct packet *p)
{
	__u8 *icmp = p->version == 4 && p->protocol == PROTO_ICMP ? carried(p, 8) : NULL;

	return icmp && *icmp == ICMP_REDIRECT;
}

/* A sound packet that fits, for the peer. */
INLINE int down(struct xdp_md *ctx, const struct flow *f, const struct packet *p, enum pipex_counter path)
{
	const struct pipex_session *s = f->session;

	if (redirects(p)) {
		count(PIPEX_C_DROP_PROTOCOL, p->size);
		return XDP_DROP;
	}
	if (!police(f, PIPEX_DOWN, p->size))
		return drop_out(f, PIPEX_C_DROP_POLICE, p->size);
	mss(ctx, f, p, s->mru);
	idle(f, p, bpf_ktime_get_coarse_ns());
	if (path == PIPEX_C_FAST_DOWN) {
		hop(p);
		if (!resize(ctx, ETH_HLEN + p->size))
			return drop_out(f, PIPEX_C_TX_FAIL, p->size);
	}
	if (!encapsulate(ctx, s, p))
		return drop_out(f, PIPEX_C_TX_FAIL, p->size);
	count_out(f, p);
	mirror(ctx, f, PIPEX_DOWN);
	if (path == PIPEX_C_FAST_DOWN)
		return send(s->ifindex, path, p->size);
	return leave(ctx, s->ifindex, p->size);
}

SEC("xdp")
int pipex_core(struct xdp_md *ctx)
{
	struct outgoing o;
	struct packet p;
	struct flow f;

	/* The kernel multicasts by itself; no peer is meant. */
	if (!read_outgoing(ctx, &o) || o.eth->h_dest[0] & 1) {
		count(PIPEX_C_DROP_PROTOCOL, ctx->data_end - ctx->data);
		return XDP_DROP;
	}
	if (!find(o.ref, &f, o.room))
		return XDP_PASS;
	if (f.blocks & PIPEX_USER) {
		count(PIPEX_C_USER_DOWN, o.room);
		return XDP_PASS;
	}
	if (!may_pass(&f, o.version))
		return drop_out(&f, PIPEX_C_DROP_PROTOCOL, o.room);
	if (!read_ip(ctx, o.version, o.room, &p))
		return drop_out(&f, PIPEX_C_DROP_MALFORMED, o.room);
	if (p.size > f.session->mtu) {
		/* What npppyd sends in pieces is charged here, so that there is one bucket. */
		if (divisible(&p) && !police(&f, PIPEX_DOWN, p.size))
			return drop_out(&f, PIPEX_C_DROP_POLICE, p.size);
		count(PIPEX_C_PUNT_TOOBIG, p.size);
		return XDP_PASS;
	}
	return down(ctx, &f, &p, PIPEX_C_STACK_DOWN);
}

SEC("xdp")
int pipex_nic(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct pipex_nic *nic;
	struct outgoing o;
	struct packet p;
	struct flow f;

	if (!read_outgoing(ctx, &o) || !o.ref)
		return XDP_PASS;
	nic = bpf_map_lookup_elem(&nics, &ifindex);
	if (!nic || !same_mac(o.eth->h_dest, nic->mac))
		return XDP_PASS;
	/*
	 * What passes goes through the stack and comes to pipex_core, which counts it, and which knows what to do where
	 * no frame can be redirected to.
	 */
	if (!follow(o.ref, &f) || !(f.blocks & PIPEX_FAST) || f.blocks & PIPEX_USER || !may_pass(&f, o.version) ||
	    !read_ip(ctx, o.version, o.room, &p) || p.size > f.session->mtu || !plain(&p) ||
	    partial(&p) || !bpf_map_lookup_elem(&devs, &f.session->ifindex))
		return XDP_PASS;
	return down(ctx, &f, &p, PIPEX_C_FAST_DOWN);
}

/*
 * IP for npppyd, and frames for peers that pipex_core could not redirect.  Nothing may go on into the stack: it would
 * route it to npx0, and back here.
 */
SEC("tc")
int pipex_miss(struct __sk_buff *skb)
{
	struct pipex_config *cfg;
	__u32 *out = (void *)(long)skb->data_meta;

	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)) {
		if ((void *)(out + 1) > (void *)(long)skb->data)
			return TC_ACT_SHOT;
		return bpf_redirect(*out, 0);
	}
	for (__u32 shared = 0; shared < PIPEX_SHARED_MAX; shared++) {
		__u32 index = shared;

		cfg = bpf_map_lookup_elem(&config, &index);
		if (cfg && cfg->npx1 == skb->ifindex)
			return bpf_redirect(cfg->tun, 0);
	}
	return TC_ACT_SHOT;
}
