/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * From a session frame to an IP packet behind an Ethernet header, and back.
 */
#ifndef PIPEX_ENCAP_H
#define PIPEX_ENCAP_H

#include "mppe.h"
#include "outer.h"

/* Remove all before the IP packet, but for the room of an Ethernet header; before: the octets there. */
INLINE bool decapsulate(struct xdp_md *ctx, __u32 before)
{
	return !bpf_xdp_adjust_head(ctx, before - ETH_HLEN);
}

/* How many octets a PPP packet of that protocol grows by, since it is encrypted. */
INLINE __u32 growth(const struct flow *f, __be16 protocol)
{
	return f->blocks & PIPEX_MPPE && (protocol == bpf_htons(PPP_IP) || protocol == bpf_htons(PPP_IPV6)) ? MPPE_HEAD : 0;
}

/*
 * Put the session's headers in the place of the first octets of a frame, cut of them, so that they are in front of a PPP
 * packet, which has size octets from its Protocol field on; that is written too, if there is one.  What is to be
 * encrypted is, and takes some of those octets too.
 */
INLINE bool wrap(struct xdp_md *ctx, const struct flow *f, __u32 cut, __u32 size, __be16 protocol)
{
	const struct pipex_session *s = f->session;
	__u32 length = s->encap_len, at = s->length_at;
	struct cursor c = cursor_open(ctx);
	void *data, *end;
	__be16 *field;
	bool encrypted;

	if (length < ETH_HLEN || length > PIPEX_ENCAP_MAX || at > length - sizeof(__be16) || !take(&c, cut))
		return false;
	field = take(&c, sizeof(*field));
	if (!field)
		return false;
	if (protocol)
		*field = protocol;
	encrypted = growth(f, *field);
	if (encrypted) {
		if (!mppe_encrypt(ctx, f->slot, f->generation, cut, size))
			return false;
		cut -= MPPE_HEAD;
		size += MPPE_HEAD;
	}
	if (bpf_xdp_adjust_head(ctx, (int)cut - (int)length))
		return false;
	c = cursor_open(ctx);
	if (left(&c) < ETH_ZLEN)
		resize(ctx, ETH_ZLEN);
	if (bpf_xdp_store_bytes(ctx, 0, (void *)s->encap, length))
		return false;
	if (has_outer(s))
		return fill_in(ctx, f, size, encrypted);
	/* The verifier of Linux 6.1 does not see it in the length. */
	barrier_var(at);
	if (at > PIPEX_ENCAP_MAX)
		return false;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + at + sizeof(__be16) > end)
		return false;
	*(__be16 *)(data + at) = bpf_htons(size);
	return true;
}

/* Octets of PPP that carry an IP packet. */
INLINE __u32 ppp_size(const struct flow *f, const struct packet *p)
{
	return sizeof(__be16) + p->size + growth(f, bpf_htons(PPP_IP));
}

/* Put them in front of an IP packet, in the place of its Ethernet header, of which PPP's Protocol field is the end. */
INLINE bool encapsulate(struct xdp_md *ctx, const struct flow *f, const struct packet *p)
{
	__be16 protocol = p->version == 4 ? bpf_htons(PPP_IP) : bpf_htons(PPP_IPV6);

	return wrap(ctx, f, ETH_HLEN - sizeof(protocol), sizeof(protocol) + p->size, protocol);
}

#endif
