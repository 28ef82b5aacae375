/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * What make bench loads npppy with: see bench/wire.py and bench/tcp.py, which share these structures.
 *
 *   generate	makes frames, run by BPF_PROG_TEST_RUN again and again, and sends each out of an interface
 *   play		the same with frames that have been made before, every octet of them
 *   sink	XDP where they arrive: compares and counts them
 *   cpe_out	XDP of a veth whose other end is a subscriber's device: puts PPPoE around what its kernel sends
 *   cpe_in	XDP of the subscriber's interface: the way back
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Octets in which the frames of a stream may differ, or which are rewritten on the way: all headers and the number. */
#define HEAD 96
/* Most streams need no more; the smallest frames have no more. */
#define SHORT 72
#define TAIL 16
#define FRAMES (1 << 15)
#define GRE 47
#define GRE_ACKNOWLEDGES 0x2081
/* Octets of a part of the reel, and of a frame on it at the most. */
#define REEL (1 << 20)
#define FRAME 1536

struct head {
	__u64 words[HEAD / 8];
};

/* Frames number first to first + count - 1, at random. */
struct sending {
	__u32 ifindex;
	__u32 first;
	__u32 count;
	__u32 interval;	/* nanoseconds between two; 0: as fast as it goes */
	__u32 head;	/* SHORT or HEAD */
	__u32 count_at;	/* where each frame counts how often it was sent; 0: nowhere */
	__u32 count_size;	/* in so many octets, 2 or 4 */
	__u32 zero;
	__u64 next;
};

/* Frames one behind the other. */
struct reel {
	__u8 octets[REEL];
};

/* The next frame on the reel. */
struct playing {
	__u32 ifindex;
	__u32 length;
	__u32 stride;	/* from one frame to the next; 0: it is the same */
	__u32 part;
	__u32 at;
};

/* As they must arrive; all have the same length and end. */
struct arriving {
	__u32 first;
	__u32 count;
	__u32 length;
	__u32 number_at;	/* where a frame has its number, which counts from 0; 0: encrypted, number and end, too */
	__u64 tail[TAIL / 8];
	__u64 mask[HEAD / 8];	/* of the octets of a head that are compared */
	__u32 keep;	/* so many right ones still go on to the kernel, for a packet socket to look at, */
	__u32 every;	/* one of so many */
	__u16 type;	/* wire: EtherType */
	__u16 head;	/* SHORT or HEAD */
	__u32 zero;
};

struct tally {
	__u64 right;
	__u64 wrong;
};

/* Of a subscriber's end. */
struct cpe {
	__u32 wire;	/* its interface */
	__u32 inside;	/* the veth end that cpe_out is on */
	__u8 header[22];	/* of a frame to the concentrator, up to PPP's Protocol field */
	__u16 pppoe;	/* 0: plain IP */
	__u8 inward[14];	/* of a frame to the subscriber's kernel */
	__u16 zero;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sending);
} sending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct arriving);
} arriving SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAMES);
	__type(key, __u32);
	__type(value, struct head);
} sent SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAMES);
	__type(key, __u32);
	__type(value, struct head);
} expected SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tally);
} tallies SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpe);
} cpes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct playing);
} playing SEC(".maps");

/* As many as are asked for. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reel);
} reel SEC(".maps");

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 zero = 0, number, at;
	__u64 *data = (void *)(long)ctx->data, now;
	struct sending *s = bpf_map_lookup_elem(&sending, &zero);
	struct head *head;
	__be16 *count;
	__be32 *long_count;

	if (!s)
		return XDP_ABORTED;
	if (s->interval) {
		now = bpf_ktime_get_ns();
		if (now < s->next)
			return XDP_DROP;
		s->next = now + s->interval;
	}
	number = s->first;
	if (s->count > 1)
		number += (__u64)bpf_get_prandom_u32() * s->count >> 32;
	head = bpf_map_lookup_elem(&sent, &number);
	if (!head || (void *)data + SHORT > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	at = s->count_at;
	if (at && at <= HEAD - sizeof(*long_count)) {
		count = (void *)head + at;
		long_count = (void *)count;
		if (s->count_size == sizeof(*long_count))
			*long_count = bpf_htonl(bpf_ntohl(*long_count) + 1);
		else
			*count = bpf_htons(bpf_ntohs(*count) + 1);
	}
#pragma unroll
	for (int i = 0; i < SHORT / 8; i++)
		data[i] = head->words[i];
	if (s->head > SHORT) {
		if ((void *)data + HEAD > (void *)(long)ctx->data_end)
			return XDP_ABORTED;
#pragma unroll
		for (int i = SHORT / 8; i < HEAD / 8; i++)
			data[i] = head->words[i];
	}
	return bpf_redirect(s->ifindex, 0);
}

SEC("xdp")
int play(struct xdp_md *ctx)
{
	__u32 zero = 0, part, at, length;
	struct playing *p = bpf_map_lookup_elem(&playing, &zero);
	struct reel *octets;

	if (!p)
		return XDP_ABORTED;
	part = p->part;
	at = p->at;
	length = p->length;
	octets = bpf_map_lookup_elem(&reel, &part);
	if (!octets || at > REEL - FRAME || !length || length > FRAME ||
	    bpf_xdp_store_bytes(ctx, 0, octets->octets + at, length))
		return XDP_ABORTED;
	at += p->stride;
	if (at > REEL - FRAME) {
		at = 0;
		p->part = part + 1;
	}
	p->at = at;
	return bpf_redirect(p->ifindex, 0);
}

/* Does a frame of GRE acknowledge, and nothing else (RFC 2637 section 4.1)?  Its receiver has no other use for it. */
static __always_inline int acknowledges(const struct ethhdr *eth, const void *end)
{
	const struct iphdr *ip = (void *)(eth + 1);
	const __be16 *flags = (void *)(ip + 1);

	return (void *)(flags + 1) <= end && eth->h_proto == bpf_htons(ETH_P_IP) && ip->protocol == GRE &&
	       *flags == bpf_htons(GRE_ACKNOWLEDGES);
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0, number, at;
	struct arriving *a = bpf_map_lookup_elem(&arriving, &zero);
	struct tally *t = bpf_map_lookup_elem(&tallies, &zero);
	__u64 difference = 0, *word = data;
	struct ethhdr *eth = data;
	struct head *head;

	if (!a || !t || data + SHORT > end)
		return acknowledges(eth, end) ? XDP_DROP : XDP_PASS;
	/* What kernels and npppyd send by themselves is none of ours. */
	if (eth->h_proto != a->type || end - data != a->length)
		return XDP_PASS;
	at = a->number_at;
	if (at > HEAD - sizeof(number) || data + at + sizeof(number) > end)
		return XDP_PASS;
	if (at)
		__builtin_memcpy(&number, data + at, sizeof(number));
	else
		number = 0;
	if (number >= a->count)
		goto wrong;
	number += a->first;
	head = bpf_map_lookup_elem(&expected, &number);
	if (!head)
		goto wrong;
#pragma unroll
	for (int i = 0; i < SHORT / 8; i++)
		difference |= (word[i] ^ head->words[i]) & a->mask[i];
	if (a->head > SHORT) {
		if (data + HEAD > end)
			goto wrong;
#pragma unroll
		for (int i = SHORT / 8; i < HEAD / 8; i++)
			difference |= (word[i] ^ head->words[i]) & a->mask[i];
	}
	at = a->length - TAIL;
	if (at > 2048 || data + at + TAIL > end)
		goto wrong;
	word = data + at;
	if (a->number_at)
		difference |= (word[0] ^ a->tail[0]) | (word[1] ^ a->tail[1]);
	if (difference)
		goto wrong;
	t->right++;
	if (a->keep && t->right % a->every == 0) {
		a->keep--;
		return XDP_PASS;
	}
	return XDP_DROP;
wrong:
	t->wrong++;
	return XDP_DROP;
}

SEC("xdp")
int cpe_out(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	struct cpe *cpe = bpf_map_lookup_elem(&cpes, &zero);
	struct ethhdr *eth = data;
	struct iphdr *ip = data + sizeof(*eth);
	__be16 length;

	if (!cpe || (void *)(ip + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP))
		return XDP_DROP;
	if (!cpe->pppoe) {
		__builtin_memcpy(data, cpe->header, sizeof(*eth));
		return bpf_redirect(cpe->wire, 0);
	}
	length = bpf_htons(bpf_ntohs(ip->tot_len) + 2);
	if (bpf_xdp_adjust_head(ctx, -8))
		return XDP_DROP;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (data + sizeof(cpe->header) > end)
		return XDP_DROP;
	__builtin_memcpy(data, cpe->header, sizeof(cpe->header));
	__builtin_memcpy(data + 18, &length, sizeof(length));
	return bpf_redirect(cpe->wire, 0);
}

SEC("xdp")
int cpe_in(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 zero = 0;
	struct cpe *cpe = bpf_map_lookup_elem(&cpes, &zero);
	struct ethhdr *eth = data;

	if (!cpe || data + sizeof(cpe->header) > end)
		return XDP_PASS;
	if (cpe->pppoe) {
		/* PPP's Protocol field: IPv4. */
		if (eth->h_proto != bpf_htons(ETH_P_PPP_SES) || *(__be16 *)(data + 20) != bpf_htons(0x0021))
			return XDP_PASS;
		if (bpf_xdp_adjust_head(ctx, 8))
			return XDP_DROP;
		data = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
		if (data + sizeof(cpe->inward) > end)
			return XDP_DROP;
	} else if (eth->h_proto != bpf_htons(ETH_P_IP)) {
		return XDP_PASS;
	}
	__builtin_memcpy(data, cpe->inward, sizeof(cpe->inward));
	return bpf_redirect(cpe->inside, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
