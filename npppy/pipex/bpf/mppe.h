/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * MPPE (RFC 3078), stateless: each packet has a key of its own, made of that before by SHA-1 and RC4.
 *
 * Keys are worked out without the lock, under which no function can be called; then what came of them is written, if
 * it still says something new.  What is encrypted is worked on in a copy: a packet is as it was until all is known to
 * be well.
 */
#ifndef PIPEX_MPPE_H
#define PIPEX_MPPE_H

#include "session.h"
#include "sum.h"

/* PPP's Protocol field, and what stands between it and what is encrypted: bits A and D, and the coherency count. */
#define PPP_MPPE 0x00fd
#define MPPE_BITS 0x9000
#define MPPE_COUNT 0x0fff
/* Octets of the bits; with the Protocol field. */
#define MPPE_INNER 2
#define MPPE_HEAD 4
/* Counts that lie so far ahead are behind. */
#define MPPE_BEHIND 0x0800

/* To more changes of the key than that only npppyd goes; and to more than a few none too soon after a failure. */
#define MPPE_STEPS 256
#define MPPE_FEW 8
#define MPPE_PAUSE_NS 10000000ll
/* So long without one that could be decrypted, and one that seems to be old is tried as one from ahead. */
#define MPPE_QUIET_NS 1000000000ll

/* How often a key for the peer is worked out while other processors are faster. */
#define MPPE_TRIES 8

/* The most octets that are encrypted: no MTU is greater. */
#define MPPE_MAX 2047
/* So many RC4 does at a time. */
#define MPPE_TURN 64

/* What a packet is worked on with.  A processor has one: programs of XDP do not interrupt each other. */
struct mppe_work {
	__u8 state[256];	/* of RC4 */
	__u64 j;
	__u64 start[2], key[2];	/* as in struct pipex_mppe */
	__u32 size, salt;
	__u32 words[16];	/* of SHA-1: a block */
	__u32 sum[5];		/* and of those before */
	__u32 sequence;		/* number of the carrier's, that goes with a key for the peer */
	__u8 room[5];
	/* What is encrypted begins with text[1], as RC4's counter does; before it the packet's head has its place. */
	__u8 head[MPPE_HEAD - 1];
	__u8 text[MPPE_MAX + 1 + MPPE_TURN];
};

_Static_assert(offsetof(struct mppe_work, text) % 8 == 0, "text is read by words");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct mppe_work);
} mppe_works SEC(".maps");

INLINE __u32 rotated(__u32 x, int bits)
{
	return x << bits | x >> (32 - bits);
}

/* The word of a round of SHA-1: the block's own, then such as are made of them, in their place. */
#define SHA1_WORD(t)                                                                                           \
	((t) < 16 ? words[(t) & 15] :                                                                          \
		    (words[(t) & 15] = rotated(words[((t) - 3) & 15] ^ words[((t) - 8) & 15] ^                 \
						       words[((t) - 14) & 15] ^ words[(t) & 15], 1)))

#define SHA1_ROUNDS(from, f, k)                                                  \
	_Pragma("unroll")                                                        \
	for (int t = from; t < from + 20; t++) {                                 \
		__u32 next = rotated(a, 5) + (f) + e + (k) + SHA1_WORD(t);       \
                                                                                 \
		barrier_var(next);                                               \
		e = d;                                                           \
		d = c;                                                           \
		c = rotated(b, 30);                                              \
		b = a;                                                           \
		a = next;                                                        \
	}

/* Add a block to the sum.  This and what follows is each of its own for the verifier: it looks at it once. */
__attribute__((noinline)) int sha1_block(struct mppe_work *w)
{
	__u32 a, b, c, d, e;
	/* Else clang would have them on the stack too, where there is little room for all that leads here. */
	volatile __u32 *words;

	if (!w)
		return 0;
	words = w->words;
	a = w->sum[0];
	b = w->sum[1];
	c = w->sum[2];
	d = w->sum[3];
	e = w->sum[4];
	SHA1_ROUNDS(0, d ^ (b & (c ^ d)), 0x5a827999)
	SHA1_ROUNDS(20, b ^ c ^ d, 0x6ed9eba1)
	SHA1_ROUNDS(40, (b & c) | (d & (b | c)), 0x8f1bbcdc)
	SHA1_ROUNDS(60, b ^ c ^ d, 0xca62c1d6)
	w->sum[0] += a;
	w->sum[1] += b;
	w->sum[2] += c;
	w->sum[3] += d;
	w->sum[4] += e;
	return 0;
}

/*
 * The octets of the state in their order, at + 0 ... at + 7, swapped each with another.  They are read all at once, and
 * anew only if one that is yet to come has been swapped away: else each read would wait for the write before it, of
 * which the processor knows late where it goes.  That is twice as slow.
 *
 * n: of the step, 0 ... 7; more: what else is added to j.
 */
#define RC4_SWAP(n, more)                                                \
	do {                                                             \
		a = eight & 255;                                         \
		eight >>= 8;                                             \
		j = (j + a + (more)) & 255;                              \
		barrier_var(j);                                          \
		other = state + j;                                       \
		b = *other;                                              \
		at[n] = b;                                               \
		*other = a;                                              \
		offset = other - at;                                     \
		/* In 64 bits, as in left(). */                          \
		barrier_var(offset);                                     \
		if ((n) < 7 && offset - ((n) + 1) < 7u - (n))            \
			eight = *(volatile __u64 *)at >> 8 * ((n) + 1);  \
	} while (0)

/* The key brought into 64 octets of the state. */
__attribute__((noinline)) int rc4_key(struct mppe_work *w, __u32 from)
{
	__u64 a, b, j, eight, offset;
	__u8 *state, *at, *other, *key;

	if (!w)
		return 0;
	state = w->state;
	at = state + (from & 192);
	key = (__u8 *)w->key;
	j = w->j;
#pragma unroll
	for (int done = 0; done < 64; done += 8) {
		eight = *(__u64 *)at;
#pragma unroll
		for (int n = 0; n < 8; n++)
			RC4_SWAP(n, key[(done & 8) + n]);
		at += 8;
	}
	w->j = j;
	return 0;
}

/* Start RC4 with the key. */
INLINE void rc4_start(struct mppe_work *w)
{
	__u64 eight = 0x0706050403020100;

	if (w->size == 8)
		w->key[1] = w->key[0];
#pragma unroll
	for (int i = 0; i < 256; i += 8) {
		*(__u64 *)(w->state + i) = eight;
		eight += 0x0808080808080808;
	}
	w->j = 0;
#pragma unroll
	for (int from = 0; from < 256; from += 64)
		rc4_key(w, from);
	w->j = 0;
}

/* A turn of RC4, over so many octets at the most from text[turn * MPPE_TURN] on, or not much more. */
__attribute__((noinline)) int rc4_turn(struct mppe_work *w, __u32 turn, __u32 octets)
{
	__u64 a, b, j, eight, offset, stream, first = (turn & 31) * MPPE_TURN;
	__u8 *state, *at, *other, *text;

	if (!w)
		return 0;
	state = w->state;
	at = state + (first & 255);
	text = w->text + first;
	j = w->j;
#pragma unroll
	for (int done = 0; done < MPPE_TURN; done += 8) {
		eight = *(__u64 *)at;
		stream = 0;
#pragma unroll
		for (int n = 0; n < 8; n++) {
			/* RC4 leaves out its first octet. */
			if (done + n == 0 && turn == 0) {
				eight >>= 8;
				continue;
			}
			RC4_SWAP(n, 0);
			stream |= (__u64)state[(a + b) & 255] << 8 * n;
		}
		*(__u64 *)(text + done) ^= stream;
		if (octets <= (__u32)done + 8)
			break;
		at += 8;
	}
	w->j = j;
	return 0;
}

/* The same over so many octets of text as there are, but for some turns that have been. */
INLINE void rc4(struct mppe_work *w, __u32 turns, __u32 octets)
{
	for (__u32 turn = turns; turn <= MPPE_MAX / MPPE_TURN; turn++) {
		if (turn * MPPE_TURN > octets)
			break;
		rc4_turn(w, turn, octets + 1 - turn * MPPE_TURN);
	}
}

/* The key after the key: what GetNewKeyFromSHA makes of it, encrypted by RC4 with that as its key (section 7.3). */
__attribute__((noinline)) int change_key(struct mppe_work *w)
{
	__u32 *start, *key;
	__u8 *octets;

	if (!w)
		return 0;
	start = (__u32 *)w->start;
	key = (__u32 *)w->key;
	octets = (__u8 *)w->key;
	w->sum[0] = 0x67452301;
	w->sum[1] = 0xefcdab89;
	w->sum[2] = 0x98badcfe;
	w->sum[3] = 0x10325476;
	w->sum[4] = 0xc3d2e1f0;
	/* StartKey, 40 zeros, SessionKey, 40 times 0xf2, and what ends SHA-1: in both sizes two blocks. */
	w->words[0] = bpf_ntohl(start[0]);
	w->words[1] = bpf_ntohl(start[1]);
	if (w->size == 8) {
#pragma unroll
		for (int i = 2; i < 12; i++)
			w->words[i] = 0;
		w->words[12] = bpf_ntohl(key[0]);
		w->words[13] = bpf_ntohl(key[1]);
		w->words[14] = w->words[15] = 0xf2f2f2f2;
		sha1_block(w);
#pragma unroll
		for (int i = 0; i < 8; i++)
			w->words[i] = 0xf2f2f2f2;
		w->words[8] = 0x80000000;
#pragma unroll
		for (int i = 9; i < 15; i++)
			w->words[i] = 0;
		w->words[15] = 8 * (8 + 40 + 8 + 40);
	} else {
		w->words[2] = bpf_ntohl(start[2]);
		w->words[3] = bpf_ntohl(start[3]);
#pragma unroll
		for (int i = 4; i < 14; i++)
			w->words[i] = 0;
		w->words[14] = bpf_ntohl(key[0]);
		w->words[15] = bpf_ntohl(key[1]);
		sha1_block(w);
		w->words[0] = bpf_ntohl(key[2]);
		w->words[1] = bpf_ntohl(key[3]);
#pragma unroll
		for (int i = 2; i < 12; i++)
			w->words[i] = 0xf2f2f2f2;
		w->words[12] = 0x80000000;
		w->words[13] = w->words[14] = 0;
		w->words[15] = 8 * (16 + 40 + 16 + 40);
	}
	sha1_block(w);
#pragma unroll
	for (int i = 0; i < 4; i++)
		key[i] = bpf_htonl(w->sum[i]);
	rc4_start(w);
	__builtin_memcpy(w->text + 1, w->key, sizeof(w->key));
	rc4_turn(w, 0, w->size + 1);
	__builtin_memcpy(w->key, w->text + 1, sizeof(w->key));
	if (w->salt) {
		octets[0] = 0xd1;
		if (w->salt == 3) {
			octets[1] = 0x26;
			octets[2] = 0x9e;
		}
	}
	return 0;
}

INLINE void copy_key(void *to, const void *from)
{
	__builtin_memcpy(to, from, 2 * sizeof(__u64));
}

/* The row of keys of a way of a session, and what to work with. */
INLINE struct pipex_mppe *find_keys(__u32 slot, __u32 way, struct mppe_work **w)
{
	__u32 index = 2 * slot + way, mine = 0;

	*w = bpf_map_lookup_elem(&mppe_works, &mine);
	return *w ? bpf_map_lookup_elem(&mppe, &index) : NULL;
}

/* From what is encrypted to the work, or back, with so much of the head. */
#define COPY_TEXT(copy, at, head_octets, octets)                                                         \
	copy(ctx, (at) - (head_octets), w->text + 1 - (head_octets), (((octets) - 1) & MPPE_MAX) + 1 + (head_octets))

/*
 * A packet that PPP carries, or a part of it.  Of it what is encrypted begins with PPP's Protocol field, of one octet or
 * two.
 */
struct mppe_packet {
	__u32 slot;
	__u32 generation;
	__u32 at;	/* behind the Protocol field of MPPE; in the end, the IP packet */
	__u32 size;	/* octets from there on */
	__u32 protocol;	/* in the end, PPP's */
};

enum mppe_verdict {
	MPPE_DECRYPTED,
	MPPE_CONTROL,	/* for npppyd */
	MPPE_LATE,	/* it has been, or was given up */
	MPPE_OLD,	/* so it seems; but it may be from far ahead */
	MPPE_FAILED,	/* npppyd may know what it is */
};

/*
 * Is the begin of the text that of an IP packet in PPP, of so many octets?  MPPE has no other integrity.  0: no; else
 * the octets before the packet.
 */
INLINE __u32 before_ip(const struct mppe_work *w, __u32 octets)
{
	__u32 before = w->text[1] ? 1 : 2, header, total;
	const __u8 *text = w->text + 1;
	const struct ipv6hdr *ip6;
	const struct iphdr *ip4;

	/* For the verifier: it is one way through what follows, not two. */
	barrier_var(before);
	text += before & 3;
	ip4 = (void *)text;
	ip6 = (void *)text;
	if (octets < before + sizeof(*ip4))
		return 0;
	octets -= before;
	switch (text[-1]) {
	case PPP_IP:
		header = ip4->ihl * 4;
		total = bpf_ntohs(ip4->tot_len);
		if (ip4->version != 4 || header < sizeof(*ip4) || header > total || total > octets)
			return 0;
		return folded(bpf_csum_diff(NULL, 0, (void *)text, header & 60, 0)) == 0xffff ? before : 0;
	case PPP_IPV6:
		return octets >= sizeof(*ip6) && ip6->version == 6 &&
		       bpf_ntohs(ip6->payload_len) == octets - sizeof(*ip6) ? before : 0;
	}
	return 0;
}

/*
 * Note that a packet has come, whose key is at hand.  False: by now it has come before, or been given up.  Under the
 * lock.
 */
INLINE bool note_count(struct pipex_mppe *m, const struct mppe_work *w, __u32 count)
{
	__u32 ahead = (count - m->count) & MPPE_COUNT;

	if (ahead < MPPE_BEHIND) {
		if (ahead) {
			m->late = m->count;
			m->end = count;
			copy_key(m->late_key, m->key);
		}
		m->count = (count + 1) & MPPE_COUNT;
		copy_key(m->key, w->key);
		return true;
	}
	if (((count - m->late) & MPPE_COUNT) >= ((m->end - m->late) & MPPE_COUNT))
		return false;
	m->late = (count + 1) & MPPE_COUNT;
	copy_key(m->late_key, w->key);
	return true;
}

/* Decrypt a packet of the peer; steps: the most changes of the key that may be made. */
__attribute__((noinline)) int mppe_decrypt(struct xdp_md *ctx, struct mppe_packet *p, __u32 steps)
{
	struct mppe_work *w;
	struct pipex_mppe *m;
	__u32 octets, before, needed, head;
	__be16 field;
	bool noted;

	if (!ctx || !p)
		return MPPE_FAILED;
	octets = p->size - MPPE_INNER;
	m = find_keys(p->slot, PIPEX_UP, &w);
	if (!m || p->size <= MPPE_INNER || octets > MPPE_MAX ||
	    bpf_xdp_load_bytes(ctx, p->at, &field, sizeof(field)))
		return MPPE_FAILED;
	head = bpf_ntohs(field);
	if ((head & MPPE_BITS) != MPPE_BITS)
		return MPPE_FAILED;
	head &= MPPE_COUNT;
	bpf_spin_lock(&m->lock);
	if (m->generation != p->generation) {
		bpf_spin_unlock(&m->lock);
		return MPPE_FAILED;
	}
	w->size = m->size;
	w->salt = m->salt;
	copy_key(w->start, m->start);
	needed = (head - m->count) & MPPE_COUNT;
	if (needed < MPPE_BEHIND) {
		copy_key(w->key, m->key);
	} else {
		needed = (head - m->late) & MPPE_COUNT;
		if (needed >= ((m->end - m->late) & MPPE_COUNT)) {
			bpf_spin_unlock(&m->lock);
			return MPPE_OLD;
		}
		copy_key(w->key, m->late_key);
	}
	bpf_spin_unlock(&m->lock);
	if (++needed > steps)
		return MPPE_FAILED;
	for (__u32 step = 0; step < MPPE_STEPS && step < needed; step++)
		change_key(w);
	if (COPY_TEXT(bpf_xdp_load_bytes, p->at + MPPE_INNER, 0, octets))
		return MPPE_FAILED;
	rc4_start(w);
	rc4_turn(w, 0, octets + 1);
	before = before_ip(w, octets);
	if (!before)
		return MPPE_FAILED;
	p->protocol = w->text[before & 3];
	/* npppyd decrypts it. */
	if (p->protocol == PPP_IPV6 && link_scope((void *)(w->text + 1 + (before & 3))))
		return MPPE_CONTROL;
	rc4(w, 1, octets);
	bpf_spin_lock(&m->lock);
	noted = m->generation == p->generation && note_count(m, w, head);
	bpf_spin_unlock(&m->lock);
	if (!noted)
		return MPPE_LATE;
	if (COPY_TEXT(bpf_xdp_store_bytes, p->at + MPPE_INNER, 0, octets))
		return MPPE_LATE;
	p->at += MPPE_INNER + before;
	p->size -= MPPE_INNER + before;
	return MPPE_DECRYPTED;
}

/*
 * The next key for the peer, and the packet's number.  Where the carrier has numbers too, its one is taken in the same
 * turn, so that whoever puts packets in order by those has them in the order of keys.  False: others had all that could
 * be had.
 */
INLINE bool next_key(struct pipex_mppe *m, struct mppe_work *w, struct pipex_seq *seq, __u32 generation, __u32 *number)
{
	bool same, ours;
	__u32 count;

	for (int i = 0; i < MPPE_TRIES; i++) {
		bpf_spin_lock(&m->lock);
		ours = m->generation == generation;
		count = m->count;
		w->size = m->size;
		w->salt = m->salt;
		copy_key(w->start, m->start);
		copy_key(w->key, m->key);
		bpf_spin_unlock(&m->lock);
		if (!ours)
			return false;
		change_key(w);
		bpf_spin_lock(&m->lock);
		same = m->generation == generation && m->count == count;
		if (same) {
			m->count = (count + 1) & MPPE_COUNT;
			copy_key(m->key, w->key);
			if (seq)
				w->sequence = __sync_fetch_and_add(&seq->out, 1);
		}
		bpf_spin_unlock(&m->lock);
		if (same) {
			*number = count;
			return true;
		}
	}
	return false;
}

/*
 * Encrypt a packet for the peer: so many octets of the frame from PPP's Protocol field on, in front of which are then
 * the MPPE_HEAD octets of the Protocol field and header of MPPE.  Returns whether that is done.
 */
__attribute__((noinline)) int mppe_encrypt(struct xdp_md *ctx, __u32 slot, __u32 generation, __u32 at, __u32 octets)
{
	struct pipex_session *s = bpf_map_lookup_elem(&slots, &slot);
	struct pipex_seq *seq = NULL;
	struct mppe_work *w;
	struct pipex_mppe *m;
	__u32 number;

	if (!ctx || !s)
		return false;
	if (has_outer(s) && s->seq_at)
		seq = bpf_map_lookup_elem(&seqs, &slot);
	m = find_keys(slot, PIPEX_DOWN, &w);
	if (!m || !octets || octets > MPPE_MAX || !next_key(m, w, seq, generation, &number) ||
	    COPY_TEXT(bpf_xdp_load_bytes, at, 0, octets))
		return false;
	rc4_start(w);
	rc4(w, 0, octets);
	w->head[0] = PPP_MPPE >> 8;
	w->head[1] = PPP_MPPE & 0xff;
	w->head[2] = (MPPE_BITS | number) >> 8;
	w->text[0] = number;
	return !COPY_TEXT(bpf_xdp_store_bytes, at, MPPE_HEAD, octets);
}

#endif
