// SPDX-License-Identifier: GPL-2.0-only
/*
 * Disks in memory for benchmarks that count instructions (tests/bench). A real disk moves data by itself; here
 * the CPU does, so the time that takes is counted apart (`ticks`) and can be taken off. Requests complete by an
 * interrupt after a fixed time: nothing depends on the host. A blk-mq driver, as those of real disks
 * are. Only for virtual machines; never installed.
 */
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/highmem.h>
#include <linux/hrtimer.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/msr.h>

#define MAX_DISKS	4
#define CHUNK_ORDER	9
#define CHUNK_BYTES	(PAGE_SIZE << CHUNK_ORDER)

static unsigned int disks = 1;
module_param(disks, uint, 0444);
MODULE_PARM_DESC(disks, "Number of disks");
static unsigned int size_mib = 128;
module_param(size_mib, uint, 0444);
MODULE_PARM_DESC(size_mib, "Size of each disk in MiB; all of the memory is taken at once");
static unsigned int latency_ns = 10000;
module_param(latency_ns, uint, 0644);
MODULE_PARM_DESC(latency_ns, "Time from a request to its interrupt");
static unsigned int ns_per_kib = 100;
module_param(ns_per_kib, uint, 0644);
MODULE_PARM_DESC(ns_per_kib, "And so much more for each KiB that is moved");

static atomic64_t moving;

struct benchdisk {
	struct gendisk *disk;
	struct blk_mq_tag_set tags;
	unsigned int chunk_count;
	struct page *chunks[];
};

struct command {
	struct hrtimer timer;
	blk_status_t status;
};

static struct benchdisk *all[MAX_DISKS];

static void *place(struct benchdisk *b, u64 at, size_t *room)
{
	*room = CHUNK_BYTES - at % CHUNK_BYTES;
	return page_address(b->chunks[at / CHUNK_BYTES]) + at % CHUNK_BYTES;
}

static void move_segment(struct benchdisk *b, u64 at, struct bio_vec *bv, bool write)
{
	char *data = bvec_kmap_local(bv);
	size_t done, n, room;

	for (done = 0; done < bv->bv_len; done += n) {
		void *here = place(b, at + done, &room);

		n = min_t(size_t, room, bv->bv_len - done);
		if (write)
			memcpy(here, data + done, n);
		else
			memcpy(data + done, here, n);
	}
	kunmap_local(data);
}

static void fill_zeroes(struct benchdisk *b, u64 at, u64 len)
{
	size_t room, n;

	for (; len; at += n, len -= n) {
		void *here = place(b, at, &room);

		n = min_t(u64, room, len);
		memset(here, 0, n);
	}
}

static blk_status_t move(struct benchdisk *b, struct request *rq)
{
	u64 at = blk_rq_pos(rq) << SECTOR_SHIFT;
	struct req_iterator iter;
	struct bio_vec bv;

	if (blk_rq_bytes(rq) && at + blk_rq_bytes(rq) > (u64)b->chunk_count * CHUNK_BYTES)
		return BLK_STS_IOERR;
	switch (req_op(rq)) {
	case REQ_OP_READ:
	case REQ_OP_WRITE:
		rq_for_each_segment(bv, rq, iter) {
			move_segment(b, at, &bv, op_is_write(req_op(rq)));
			at += bv.bv_len;
		}
		return BLK_STS_OK;
	case REQ_OP_WRITE_ZEROES:
		fill_zeroes(b, at, blk_rq_bytes(rq));
		return BLK_STS_OK;
	case REQ_OP_FLUSH:
		return BLK_STS_OK;
	default:
		return BLK_STS_NOTSUPP;
	}
}

static enum hrtimer_restart expired(struct hrtimer *timer)
{
	struct command *c = container_of(timer, struct command, timer);

	blk_mq_end_request(blk_mq_rq_from_pdu(c), c->status);
	return HRTIMER_NORESTART;
}

static blk_status_t queue_rq(struct blk_mq_hw_ctx *hctx, const struct blk_mq_queue_data *bd)
{
	struct request *rq = bd->rq;
	struct command *c = blk_mq_rq_to_pdu(rq);
	unsigned long flags;
	u64 start;

	blk_mq_start_request(rq);
	/* An interrupt must not count as the disk's own time. */
	local_irq_save(flags);
	start = rdtsc();
	c->status = move(hctx->queue->queuedata, rq);
	atomic64_add(rdtsc() - start, &moving);
	local_irq_restore(flags);
	hrtimer_setup(&c->timer, expired, CLOCK_MONOTONIC, HRTIMER_MODE_REL);
	hrtimer_start(&c->timer, ns_to_ktime(latency_ns + (u64)ns_per_kib * (blk_rq_bytes(rq) >> 10)),
		      HRTIMER_MODE_REL);
	return BLK_STS_OK;
}

static const struct blk_mq_ops queue_ops = {
	.queue_rq = queue_rq,
};

static const struct block_device_operations disk_ops = {
	.owner = THIS_MODULE,
};

static int ticks_get(char *buffer, const struct kernel_param *kp)
{
	return sysfs_emit(buffer, "%lld\n", (long long)atomic64_read(&moving));
}

static const struct kernel_param_ops ticks_ops = { .get = ticks_get };
module_param_cb(ticks, &ticks_ops, NULL, 0444);
MODULE_PARM_DESC(ticks, "What moving data has taken so far, in ticks of the time stamp counter");

static void remove(struct benchdisk *b)
{
	unsigned int i;

	if (b->disk) {
		del_gendisk(b->disk);
		put_disk(b->disk);
		blk_mq_free_tag_set(&b->tags);
	}
	for (i = 0; i < b->chunk_count; i++) {
		if (b->chunks[i])
			__free_pages(b->chunks[i], CHUNK_ORDER);
	}
	kvfree(b);
}

static int add(struct benchdisk *b, unsigned int number)
{
	struct queue_limits lim = {
		.logical_block_size = 512,
		.physical_block_size = 4096,
		.max_hw_sectors = 4096,
		.max_segments = 512,
		.max_segment_size = UINT_MAX,
		.max_write_zeroes_sectors = UINT_MAX >> SECTOR_SHIFT,
		.features = BLK_FEAT_WRITE_CACHE | BLK_FEAT_FUA,
	};
	struct gendisk *disk;
	unsigned int i;
	int err;

	for (i = 0; i < b->chunk_count; i++) {
		b->chunks[i] = alloc_pages(GFP_KERNEL | __GFP_ZERO, CHUNK_ORDER);
		if (!b->chunks[i])
			return -ENOMEM;
	}
	b->tags.ops = &queue_ops;
	b->tags.nr_hw_queues = 1;
	b->tags.queue_depth = 128;
	b->tags.numa_node = NUMA_NO_NODE;
	b->tags.cmd_size = sizeof(struct command);
	err = blk_mq_alloc_tag_set(&b->tags);
	if (err)
		return err;
	disk = blk_mq_alloc_disk(&b->tags, &lim, b);
	if (IS_ERR(disk)) {
		blk_mq_free_tag_set(&b->tags);
		return PTR_ERR(disk);
	}
	disk->fops = &disk_ops;
	disk->private_data = b;
	snprintf(disk->disk_name, DISK_NAME_LEN, "benchdisk%u", number);
	set_capacity(disk, (sector_t)size_mib << (20 - SECTOR_SHIFT));
	err = add_disk(disk);
	if (err) {
		put_disk(disk);
		blk_mq_free_tag_set(&b->tags);
		return err;
	}
	b->disk = disk;
	return 0;
}

static void remove_all(void)
{
	int i;

	for (i = MAX_DISKS - 1; i >= 0; i--) {
		if (all[i])
			remove(all[i]);
	}
}

static int __init benchdisk_init(void)
{
	unsigned int i, chunks = DIV_ROUND_UP_ULL((u64)size_mib << 20, CHUNK_BYTES);
	int err = 0;

	if (!disks || disks > MAX_DISKS || !size_mib)
		return -EINVAL;
	for (i = 0; i < disks && !err; i++) {
		all[i] = kvzalloc(struct_size(all[i], chunks, chunks), GFP_KERNEL);
		if (!all[i]) {
			err = -ENOMEM;
			break;
		}
		all[i]->chunk_count = chunks;
		err = add(all[i], i);
	}
	if (err)
		remove_all();
	return err;
}
module_init(benchdisk_init);

static void __exit benchdisk_exit(void)
{
	remove_all();
}
module_exit(benchdisk_exit);

MODULE_DESCRIPTION("Disks in memory for the benchmarks of dattobd");
MODULE_AUTHOR("The dattobd authors");
MODULE_LICENSE("GPL");
