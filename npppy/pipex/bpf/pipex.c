/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * pipex: the data of established sessions.
 *
 *   pipex_access	XDP of an access NIC: from the peer, to npx0 by way of npx1, or to a core NIC
 *   pipex_core		XDP of npx1: from the stack by way of npx0, to the peer; and from the peer what has been
 *			decrypted
 *   pipex_nic		XDP of a core NIC: to the peer, if its session is fast; and from the peer, of L2TP and PPTP
 *   pipex_miss		tc ingress of npx1: what pipex_core leaves to npppyd, to its tun; frames for NICs that take none
 *			from XDP; and to the stack those of L2TP and PPTP
 *   pipex_order	tc egress of npx0, once there is a session whose frames have numbers: by which queue they go
 *   pipex_ack		tc ingress of npx0, once there is a session of PPTP: what brings acknowledgments with it
 *
 * What pipex_access passes reaches npppyd's sockets.  On an access NIC and a core NIC whatever is not pipex's passes
 * untouched.
 */
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#include "count.h"
#include "echo.h"
#include "encap.h"
#include "fast.h"
#include "filter.h"
#include "idle.h"
#include "l2tp.h"
#include "mirror.h"
#include "mppe.h"
#include "mss.h"
#include "order.h"
#include "outer.h"
#include "parse.h"
#include "partial.h"
#include "pipex.h"
#include "police.h"
#include "pptp.h"
#include "session.h"
#include "sum.h"
#include "tunnel.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* Where in a frame something may be that PPP carries. */
#define CARRIED_AT 0x0fff

INLINE int send(__u32 ifindex, enum pipex_counter path, __u32 bytes)
{
	int verdict = bpf_redirect_map(&devs, ifindex, XDP_DROP);

	count(verdict == XDP_REDIRECT ? path : PIPEX_C_TX_FAIL, bytes);
	return verdict;
}

/* In front of a frame for a peer that pipex_core passes. */
struct parting {
	__u32 ifindex;	/* where it leaves; 0: by the stack */
	__u32 mark;	/* with which */
	__u32 magic;
};
/* A frame of the stack may have had metadata of somebody else's on its way here. */
#define PARTING 0x7078706e

/* Pass a frame, for pipex_miss to send. */
INLINE int part(struct xdp_md *ctx, __u32 ifindex, __u32 mark)
{
	struct parting *parting;

	if (bpf_xdp_adjust_meta(ctx, -(int)sizeof(*parting)))
		return XDP_DROP;
	parting = (void *)(long)ctx->data_meta;
	if ((void *)(parting + 1) > (void *)(long)ctx->data)
		return XDP_DROP;
	*parting = (struct parting){ ifindex, mark, PARTING };
	return XDP_PASS;
}

/*
 * To a peer, from npx1.  devs lacks the interfaces whose drivers take no frames from XDP: pipex_miss sends there, by
 * the interface's own queue.  What has outer headers is left to the stack.
 */
INLINE int leave(struct xdp_md *ctx, const struct pipex_session *s)
{
	__u32 ifindex = has_outer(s) ? 0 : s->ifindex;
	int verdict;

	if (!has_outer(s)) {
		verdict = bpf_redirect_map(&devs, ifindex, XDP_PASS);
		if (verdict != XDP_PASS)
			return verdict;
		if (!ifindex)
			return XDP_DROP;
	}
	return part(ctx, ifindex, s->mark);
}

/* An IP packet of the peer, behind an Ethernet header yet to be written; at most room octets of it. */
INLINE int up(struct xdp_md *ctx, const struct flow *f, __u8 version, __u32 room, __u64 now)
{
	const struct pipex_session *s = f->session;
	__u32 shared = s->shared, size;
	struct pipex_config *cfg = bpf_map_lookup_elem(&config, &shared);
	struct packet p;
	struct ethhdr *eth;
	bool ack;

	if (!cfg || !read_ip(ctx, version, room, &p))
		return drop_in(f, PIPEX_C_DROP_MALFORMED, room);
	if (!filter(f, &p))
		return drop_in(f, PIPEX_C_DROP_FILTER, p.size);
	if (!police(f, PIPEX_UP, p.size))
		return drop_in(f, PIPEX_C_DROP_POLICE, p.size);
	mss(ctx, f, &p, s->mtu);
	count_in(f, &p);
	idle(f, &p, now);
	ack = acknowledge_now(f, now);
	if (!ack && forward(ctx, f, &p, cfg->npx0, now)) {
		size = ETH_HLEN + p.size;
		if (!resize(ctx, size < ETH_ZLEN ? ETH_ZLEN : size))
			return drop_in(f, PIPEX_C_TX_FAIL, p.size);
		count(PIPEX_C_FAST_UP, p.size);
		return XDP_REDIRECT;
	}
	eth = p.ip - ETH_HLEN;
	__builtin_memcpy(eth->h_dest, cfg->npx0_mac, ETH_ALEN);
	if (ack)
		mark_ack(eth, f);
	else
		__builtin_memcpy(eth->h_source, cfg->npx1_mac, ETH_ALEN);
	eth->h_proto = version == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return send(cfg->npx1, PIPEX_C_STACK_UP, p.size);
}

/* A frame of a peer, and what PPP carries in it. */
struct arrival {
	__u32 bytes;	/* of the frame */
	__u32 at;	/* where that begins */
	__u32 size;	/* octets of it */
	__u32 protocol;	/* PPP's Protocol field */
	__u64 now;
	int verdict;	/* if there is nothing more to do */
};

INLINE void arrived(struct xdp_md *ctx, const struct flow *f, struct arrival *a)
{
	a->now = bpf_ktime_get_coarse_ns();
	heard(f, a->now);
	mirror(ctx, f, PIPEX_UP);
}

/* A frame of a PPPoE session.  False: there is nothing more to do. */
INLINE bool read_session(struct xdp_md *ctx, struct cursor *c, struct frame *frame, struct flow *f, struct arrival *a)
{
	__be16 *protocol;
	__u32 room;

	if (!find(bpf_map_lookup_elem(&sessions, &frame->key), f, a->bytes))
		return false;
	/* A NIC that is promiscuous, or a switch that floods, has others' frames too. */
	if (!same_mac(frame->eth->h_dest, f->session->encap + ETH_ALEN))
		return false;
	arrived(ctx, f, a);
	if (f->blocks & PIPEX_USER) {
		count(PIPEX_C_USER_UP, a->bytes);
		return false;
	}
	room = left(c);
	protocol = take(c, sizeof(*protocol));
	if (!protocol || frame->length > room || frame->length < sizeof(*protocol)) {
		a->verdict = drop_in(f, PIPEX_C_DROP_MALFORMED, a->bytes);
		return false;
	}
	a->at = frame->header + sizeof(*protocol);
	a->size = frame->length - sizeof(*protocol);
	a->protocol = bpf_ntohs(*protocol);
	if (a->protocol == PPP_LCP) {
		a->verdict = pppoe_lcp(ctx, c, frame, f, a->size, a->bytes, a->now);
		return false;
	}
	return true;
}

/* Have pipex_core send LCP's answer in its turn, which has so many octets from PPP's Protocol field on. */
INLINE int answer(struct xdp_md *ctx, const struct flow *f, const struct arrival *a, const struct pipex_config *cfg,
		  __u32 size)
{
	struct cursor c;
	struct ethhdr *eth;
	struct pipex_frame *frame;
	__be16 *protocol;

	if (bpf_xdp_adjust_head(ctx, (int)(a->at - sizeof(*eth) - sizeof(*frame) - sizeof(*protocol))))
		return drop_in(f, PIPEX_C_TX_FAIL, a->bytes);
	c = cursor_open(ctx);
	eth = take(&c, sizeof(*eth));
	frame = take(&c, sizeof(*frame));
	protocol = take(&c, sizeof(*protocol));
	if (!eth || !frame || !protocol)
		return drop_in(f, PIPEX_C_TX_FAIL, a->bytes);
	__builtin_memcpy(eth->h_dest, cfg->npx1_mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, cfg->npx0_mac, ETH_ALEN);
	eth->h_proto = bpf_htons(PIPEX_FRAME_TYPE);
	frame->ref = (struct pipex_ref){ f->slot, f->generation };
	frame->length = bpf_htons(size);
	/* It goes into the queue of this processor, which may be another than the session's. */
	frame->again = f->session->seq_at != 0;
	*protocol = bpf_htons(PPP_LCP);
	return bpf_redirect_map(&devs, cfg->npx0, XDP_DROP);
}

/* LCP in a message. */
INLINE int tunnelled_lcp(struct xdp_md *ctx, const struct flow *f, const struct arrival *a)
{
	struct cursor c = cursor_open(ctx);
	__u32 shared = f->session->shared;
	struct pipex_config *cfg = bpf_map_lookup_elem(&config, &shared);
	int verdict;

	if (!cfg || !take(&c, a->at & CARRIED_AT))
		return to_control(a->bytes);
	verdict = lcp(take(&c, sizeof(struct lcp_echo)), f, a->size, cfg->npx0, a->bytes, a->now);
	if (verdict == XDP_TX)
		return answer(ctx, f, a, cfg, sizeof(__be16) + a->size);
	if (verdict != LCP_HEARD)
		return verdict;
	/* It would be what nobody acknowledges until npppyd does; PPTP can have it done with nothing of PPP. */
	return f->session->kind == PIPEX_PPTP && bpf_map_lookup_elem(&devs, &cfg->npx0) ? answer(ctx, f, a, cfg, 0) :
											   XDP_DROP;
}

/*
 * Read a frame.  0: it is no data message of L2TP, nor one of PPTP, or none that is to be had here.  Of its own for the
 * verifier: after it, all the ways through it are one.
 */
__attribute__((noinline)) int read_message(struct xdp_md *ctx, struct message *m)
{
	struct cursor c;
	__u32 room;

	if (!ctx || !m)
		return 0;
	c = cursor_open(ctx);
	*m = (struct message){};
	room = read_outer(&c, (void *)(long)ctx->data, m);
	if (!room)
		return 0;
	return m->kind == PIPEX_PPTP ? read_pptp(ctx, &c, room, m) : read_l2tp(ctx, &c, room, m);
}

/* A message, or something else, that passes.  False: there is nothing more to do. */
INLINE bool read_tunnelled(struct xdp_md *ctx, bool decrypted, struct flow *f, struct arrival *a)
{
	struct message m;
	struct pipex_key key = {};
	struct pipex_ref *ref;

	if (!read_message(ctx, &m))
		return false;
	key.kind = m.kind;
	key.port = m.tunnel;
	key.id = m.session;
	ref = bpf_map_lookup_elem(&sessions, &key);
	/* Much looks like it. */
	if (!ref && !decrypted)
		return false;
	if (!find(ref, f, a->bytes))
		return false;
	/* In the clear: the stack's policy drops it. */
	if (f->blocks & PIPEX_IPSEC && !decrypted)
		return false;
	if (!of_peer(ctx, &m, f->session)) {
		a->verdict = drop_in(f, PIPEX_C_DROP_FILTER, a->bytes);
		return false;
	}
	arrived(ctx, f, a);
	if (m.acknowledges)
		peer_acknowledges(f, m.acknowledged, a->now);
	if (m.sequenced && f->session->seq_at &&
	    (m.kind == PIPEX_PPTP ? late_pptp(f, &m) : late_l2tp(f, m.number))) {
		a->verdict = drop_in(f, PIPEX_C_DROP_LATE, a->bytes);
		return false;
	}
	if (m.empty) {
		count(PIPEX_C_ACK_UP, a->bytes);
		a->verdict = XDP_DROP;
		return false;
	}
	if (f->blocks & PIPEX_USER) {
		count(PIPEX_C_USER_UP, a->bytes);
		return false;
	}
	if (!m.protocol) {
		a->verdict = drop_in(f, PIPEX_C_DROP_MALFORMED, a->bytes);
		return false;
	}
	a->at = m.at;
	a->size = m.size;
	a->protocol = m.protocol;
	if (a->protocol == PPP_LCP) {
		a->verdict = tunnelled_lcp(ctx, f, a);
		return false;
	}
	return true;
}

/* Decrypt what is encrypted, of a session in which IP has to be.  False: there is nothing more to do. */
INLINE bool decrypt(struct xdp_md *ctx, const struct flow *f, struct arrival *a)
{
	struct mppe_packet p = { f->slot, f->generation, a->at, a->size, 0 };
	bool failed = (__s64)(a->now - f->stats->fail_ns) < MPPE_PAUSE_NS;

	if (a->protocol == PPP_IP || a->protocol == PPP_IPV6) {
		a->verdict = drop_in(f, PIPEX_C_DROP_CLEAR, a->bytes);
		return false;
	}
	if (a->protocol != PPP_MPPE)
		return true;
	switch (mppe_decrypt(ctx, &p, failed ? MPPE_FEW : MPPE_STEPS)) {
	case MPPE_DECRYPTED:
		f->stats->decrypted_ns = a->now;
		a->at = p.at;
		a->size = p.size;
		a->protocol = p.protocol;
		return true;
	case MPPE_CONTROL:
		a->verdict = to_control(a->bytes);
		return false;
	case MPPE_OLD:
		if ((__s64)(a->now - f->stats->decrypted_ns) > MPPE_QUIET_NS)
			break;
		/* fallthrough */
	case MPPE_LATE:
		a->verdict = drop_in(f, PIPEX_C_DROP_LATE, a->bytes);
		return false;
	}
	/* npppyd has more patience, but not for what somebody forges. */
	if (failed) {
		a->verdict = drop_in(f, PIPEX_C_DROP_MALFORMED, a->bytes);
	} else {
		f->stats->fail_ns = a->now;
		a->verdict = to_control(a->bytes);
	}
	return false;
}

/* What PPP carries, of whatever session: to npppyd, or up, or it is no good. */
INLINE int carry(struct xdp_md *ctx, const struct flow *f, struct arrival *a)
{
	struct ipv6hdr *ip6;
	struct cursor c;
	__u64 version;

	if (f->blocks & PIPEX_MPPE && !decrypt(ctx, f, a))
		return a->verdict;
	if (a->protocol != PPP_IP && a->protocol != PPP_IPV6)
		return to_control(a->bytes);
	version = a->protocol == PPP_IP ? 4 : 6;
	/* The verifier of Linux 6.1 would forget it, were it worked out anew each time. */
	barrier_var(version);
	if (!may_pass(f, version))
		return drop_in(f, PIPEX_C_DROP_PROTOCOL, a->bytes);
	c = cursor_open(ctx);
	if (version == 6 && take(&c, a->at & CARRIED_AT)) {
		ip6 = take(&c, sizeof(*ip6));
		/* Router solicitations, DHCPv6 and the like. */
		if (ip6 && link_scope(ip6))
			return to_control(a->bytes);
	}
	if (!decapsulate(ctx, a->at))
		return drop_in(f, PIPEX_C_TX_FAIL, a->bytes);
	return up(ctx, f, version, a->size, a->now);
}

/* A message, for programs that have no PPPoE.  Of its own for the verifier. */
__attribute__((noinline)) int tunnelled(struct xdp_md *ctx, bool decrypted)
{
	struct arrival a = { .verdict = XDP_PASS };
	struct flow f;

	if (!ctx)
		return XDP_PASS;
	a.bytes = ctx->data_end - ctx->data;
	return read_tunnelled(ctx, decrypted, &f, &a) ? carry(ctx, &f, &a) : a.verdict;
}

SEC("xdp")
int pipex_access(struct xdp_md *ctx)
{
	struct cursor c = cursor_open(ctx);
	struct arrival a = { .bytes = left(&c), .verdict = XDP_PASS };
	struct frame frame = {};
	struct flow f;

	if (read_pppoe(&c, ctx->ingress_ifindex, &frame)) {
		if (!read_session(ctx, &c, &frame, &f, &a))
			return a.verdict;
	} else if (!read_tunnelled(ctx, false, &f, &a)) {
		return a.verdict;
	}
	return carry(ctx, &f, &a);
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

/* A frame for a peer on its way; way, if it is known, leads past the stack. */
INLINE int depart(struct xdp_md *ctx, const struct flow *f, const struct bpf_fib_lookup *way, bool known,
		  enum pipex_counter path)
{
	const struct pipex_session *s = f->session;

	if (known && !take_shortcut(ctx, s, way))
		return XDP_DROP;
	mirror(ctx, f, PIPEX_DOWN);
	if (known)
		return bpf_redirect_map(&devs, way->ifindex, XDP_DROP);
	if (path == PIPEX_C_FAST_DOWN)
		return bpf_redirect_map(&devs, s->ifindex, XDP_DROP);
	return leave(ctx, s);
}

/* A sound packet that fits, for the peer. */
INLINE int down(struct xdp_md *ctx, const struct flow *f, const struct packet *p, struct bpf_fib_lookup *way,
		bool known, enum pipex_counter path)
{
	__u64 now;
	int verdict;

	if (redirects(p)) {
		count(PIPEX_C_DROP_PROTOCOL, p->size);
		return XDP_DROP;
	}
	if (!police(f, PIPEX_DOWN, p->size))
		return drop_out(f, PIPEX_C_DROP_POLICE, p->size);
	mss(ctx, f, p, f->session->mru);
	now = bpf_ktime_get_coarse_ns();
	if (!in_window(f, now))
		return drop_out(f, PIPEX_C_DROP_WINDOW, p->size);
	idle(f, p, now);
	if (path == PIPEX_C_FAST_DOWN) {
		hop(p);
		if (!resize(ctx, ETH_HLEN + p->size))
			return drop_out(f, PIPEX_C_TX_FAIL, p->size);
	} else {
		known = has_outer(f->session) && shortcut(ctx, f, ppp_size(f, p), now, true, way);
	}
	if (!encapsulate(ctx, f, p))
		return drop_out(f, PIPEX_C_TX_FAIL, p->size);
	count_out(f, p);
	verdict = depart(ctx, f, way, known, path);
	count(verdict == XDP_DROP ? PIPEX_C_TX_FAIL : path, p->size);
	return verdict;
}

/*
 * Make a frame an acknowledgment without data, and send it.  Of the generation 16 bits are looked at: so soon none that
 * has the same is in a slot.
 */
__attribute__((noinline)) int acknowledgment(struct xdp_md *ctx, __u32 slot, __u32 generation)
{
	struct bpf_fib_lookup way;
	struct pipex_session *s = bpf_map_lookup_elem(&slots, &slot);
	struct pipex_ref ref = { .slot = slot };
	__u8 padding[ETH_ZLEN - PPTP_ACK_LEN] = {};
	struct cursor c;
	struct flow f;
	struct gre *gre;
	struct pipex_seq *seq;
	__u32 bytes;
	bool known;
	int verdict;

	if (!ctx)
		return XDP_DROP;
	bytes = ctx->data_end - ctx->data;
	if (s && (__u16)s->generation == (__u16)generation)
		ref.generation = s->generation;
	if (!find(ref.generation ? &ref : NULL, &f, bytes))
		return XDP_DROP;
	if (f.session->kind != PIPEX_PPTP) {
		count(PIPEX_C_DROP_MALFORMED, bytes);
		return XDP_DROP;
	}
	seq = numbers(&f);
	known = shortcut(ctx, &f, 0, bpf_ktime_get_coarse_ns(), true, &way);
	/* A short one may have no room behind it.  Nothing of what the frame held is to be its padding. */
	if (!seq || (bytes < ETH_ZLEN && bpf_xdp_adjust_head(ctx, (int)bytes - ETH_ZLEN)) || !resize(ctx, ETH_ZLEN) ||
	    bpf_xdp_store_bytes(ctx, 0, f.session->encap, PPTP_ACK_LEN) ||
	    bpf_xdp_store_bytes(ctx, PPTP_ACK_LEN, padding, sizeof(padding))) {
		count(PIPEX_C_TX_FAIL, bytes);
		return XDP_DROP;
	}
	c = cursor_open(ctx);
	if (!take(&c, ETH_HLEN) || !fill_in4(&c, PPTP_ACK_LEN - ETH_HLEN - sizeof(struct iphdr)))
		return XDP_DROP;
	gre = take(&c, offsetof(struct gre, acknowledged));
	if (!gre)
		return XDP_DROP;
	gre->flags &= ~bpf_htons(GRE_SEQUENCE);
	gre->number = bpf_htonl(acknowledge(&f, seq));
	verdict = depart(ctx, &f, &way, known, PIPEX_C_STACK_DOWN);
	count(verdict == XDP_DROP ? PIPEX_C_TX_FAIL : PIPEX_C_ACK_DOWN, PPTP_ACK_LEN);
	return verdict;
}

/* A frame that npppyd has made, or pipex_access. */
__attribute__((noinline)) int injected(struct xdp_md *ctx)
{
	struct bpf_fib_lookup way;
	struct pipex_frame *frame;
	struct pipex_config *cfg;
	struct pipex_ref ref;
	struct cursor c;
	struct flow f;
	__u32 bytes, size, shared, room, cut = ETH_HLEN + sizeof(*frame);
	__be16 *protocol;
	__u64 now;
	bool known;
	int verdict;

	if (!ctx)
		return XDP_DROP;
	c = cursor_open(ctx);
	bytes = left(&c);
	take(&c, ETH_HLEN);
	frame = take(&c, sizeof(*frame));
	room = left(&c);
	protocol = take(&c, sizeof(*protocol));
	if (!frame || !protocol || bpf_ntohs(frame->length) > room || bpf_ntohs(frame->length) < sizeof(*protocol)) {
		count(PIPEX_C_DROP_MALFORMED, bytes);
		return XDP_DROP;
	}
	size = bpf_ntohs(frame->length);
	ref = frame->ref;
	if (!find(&ref, &f, bytes))
		return XDP_DROP;
	if (frame->again) {
		frame->again = 0;
		shared = f.session->shared;
		cfg = bpf_map_lookup_elem(&config, &shared);
		if (cfg)
			return part(ctx, cfg->npx0, 0);
		count(PIPEX_C_TX_FAIL, bytes);
		return XDP_DROP;
	}
	now = bpf_ktime_get_coarse_ns();
	if (bpf_ntohs(*protocol) < PPP_CONTROL && !in_window(&f, now))
		return drop_out(&f, PIPEX_C_DROP_WINDOW, size);
	known = has_outer(f.session) && shortcut(ctx, &f, size + growth(&f, *protocol), now, true, &way);
	verdict = wrap(ctx, &f, cut, size, 0) ? depart(ctx, &f, &way, known, PIPEX_C_STACK_DOWN) : XDP_DROP;
	if (verdict == XDP_DROP)
		count(PIPEX_C_TX_FAIL, bytes);
	return verdict;
}

/* What the stack has decrypted is sent to this MAC address, from npx0 by a rule of npppyd's: 02 "npx" 00 02. */
INLINE bool to_outer(const struct ethhdr *eth)
{
	return *(__be16 *)(eth->h_dest + 4) == bpf_htons(0x0002) && *(__be32 *)eth->h_dest == bpf_htonl(0x026e7078);
}

/* IP of the stack.  Of its own for the verifier, as what follows: the stacks of functions that call others add up. */
__attribute__((noinline)) int from_stack(struct xdp_md *ctx)
{
	struct bpf_fib_lookup way;
	struct outgoing o;
	struct packet p;
	struct flow f;

	if (!ctx)
		return XDP_DROP;
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
	return down(ctx, &f, &p, &way, false, PIPEX_C_STACK_DOWN);
}

SEC("xdp")
int pipex_core(struct xdp_md *ctx)
{
	struct cursor c = cursor_open(ctx);
	struct ethhdr *eth = take(&c, sizeof(*eth));
	struct pipex_frame *frame;

	if (!eth)
		return XDP_DROP;
	if (to_outer(eth))
		return tunnelled(ctx, true);
	if (is_ack(eth))
		return acknowledgment(ctx, ack_slot(eth), ack_generation(eth));
	if (eth->h_proto != bpf_htons(PIPEX_FRAME_TYPE))
		return from_stack(ctx);
	frame = take(&c, sizeof(*frame));
	if (frame && !frame->length)
		return acknowledgment(ctx, frame->ref.slot, frame->ref.generation);
	return injected(ctx);
}

/* IP for a session, by what was looked up. */
__attribute__((noinline)) int from_nic(struct xdp_md *ctx, __u32 slot, __u32 generation, __u64 version)
{
	struct pipex_ref ref = { slot, generation };
	struct bpf_fib_lookup way;
	struct packet p;
	struct flow f;
	__u32 room;
	bool outer;

	if (!ctx)
		return XDP_PASS;
	room = ctx->data_end - ctx->data - ETH_HLEN;
	version = version == 4 ? 4 : 6;
	barrier_var(version);
	/*
	 * What passes goes through the stack and comes to pipex_core, which counts it, and which knows what to do where
	 * no frame can be redirected to.
	 */
	if (!follow(&ref, &f) || !(f.blocks & PIPEX_FAST) || f.blocks & PIPEX_USER || !may_pass(&f, version) ||
	    !read_ip(ctx, version, room, &p) || p.size > f.session->mtu || !plain(&p) || partial(&p))
		return XDP_PASS;
	outer = has_outer(f.session);
	if (outer ? !shortcut(ctx, &f, ppp_size(&f, &p), bpf_ktime_get_coarse_ns(), false, &way) :
		    !bpf_map_lookup_elem(&devs, &f.session->ifindex))
		return XDP_PASS;
	return down(ctx, &f, &p, &way, outer, PIPEX_C_FAST_DOWN);
}

SEC("xdp")
int pipex_nic(struct xdp_md *ctx)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct pipex_nic *nic;
	struct outgoing o;

	if (!read_outgoing(ctx, &o) || !o.ref)
		return tunnelled(ctx, false);
	nic = bpf_map_lookup_elem(&nics, &ifindex);
	if (!nic || !same_mac(o.eth->h_dest, nic->mac))
		return XDP_PASS;
	return from_nic(ctx, o.ref->slot, o.ref->generation, o.version);
}

/*
 * IP for npppyd, and frames for peers that pipex_core could not redirect.  Nothing else may go on into the stack: it
 * would route it to npx0, and back here.
 */
SEC("tc")
int pipex_miss(struct __sk_buff *skb)
{
	struct parting *parting = (void *)(long)skb->data_meta;
	struct pipex_config *cfg;

	if ((void *)(parting + 1) <= (void *)(long)skb->data && parting->magic == PARTING) {
		if (parting->ifindex)
			return bpf_redirect(parting->ifindex, 0);
		skb->mark = parting->mark;
		/* It was another frame when the kernel looked whom it is for. */
		return bpf_skb_change_type(skb, PACKET_HOST) ? TC_ACT_SHOT : TC_ACT_OK;
	}
	if (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6))
		return TC_ACT_SHOT;
	for (__u32 shared = 0; shared < PIPEX_SHARED_MAX; shared++) {
		__u32 index = shared;

		cfg = bpf_map_lookup_elem(&config, &index);
		if (cfg && cfg->npx1 == skb->ifindex)
			return bpf_redirect(cfg->tun, 0);
	}
	return TC_ACT_SHOT;
}

SEC("tc")
int pipex_order(struct __sk_buff *skb)
{
	choose_queue(skb);
	return TC_ACT_UNSPEC;
}

/* The copy need not be changed: it is by its source address that pipex_core knows it, and nobody else looks at that. */
SEC("tc")
int pipex_ack(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;

	if ((void *)(eth + 1) <= (void *)(long)skb->data_end && is_ack(eth))
		bpf_clone_redirect(skb, skb->ifindex, 0);
	return TC_ACT_UNSPEC;
}
