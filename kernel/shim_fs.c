// SPDX-License-Identifier: GPL-2.0-only
/* See shim_fs.h. */
#include <linux/cred.h>
#include <linux/dcache.h>
#include <linux/exportfs.h>
#include <linux/file.h>
#include <linux/fs_context.h>
#include <linux/fsmap.h>
#include <linux/fsnotify_backend.h>
#include <linux/mm.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/namei.h>
#include <linux/pagemap.h>
#include <linux/slab.h>
#include <linux/statfs.h>
#include <linux/string.h>
#include <linux/swap.h>
#include <linux/wait_bit.h>

#include "shim_fs.h"

/* ---- block devices ---- */

/* Without a holder: neither a mounted filesystem nor the ban on writing to mounted devices minds. */
struct file *dbd_bdev_open(dev_t dev)
{
	return bdev_file_open_by_dev(dev, BLK_OPEN_READ, NULL, NULL);
}

unsigned int dbd_bdev_traits(struct block_device *bdev)
{
	unsigned int traits = 0;

	if (bdev_is_zoned(bdev))
		traits |= DBD_BDEV_ZONED;
	if (blk_queue_dax(bdev_get_queue(bdev)))
		traits |= DBD_BDEV_DAX;
	if (bdev_logical_block_size(bdev) > 4096)
		traits |= DBD_BDEV_LARGE_BLOCKS;
	if (within_module((unsigned long)bdev->bd_disk->fops, THIS_MODULE))
		traits |= DBD_BDEV_OURS;
	return traits;
}

/* The disk has been removed; what is sent to it fails. */
bool dbd_bdev_gone(struct block_device *bdev)
{
	return test_bit(GD_DEAD, &bdev->bd_disk->state) || !disk_live(bdev->bd_disk);
}

/* Looked at without a lock: who claims it later is seen by what it writes. */
bool dbd_bdev_claimed(struct block_device *bdev)
{
	return READ_ONCE(bdev->bd_holder) || READ_ONCE(bdev->bd_claiming);
}

/*
 * A rescan of the partitions makes a new block device of the old one, whose size stands still from then on.
 * Size in sectors of what is in the place of @bdev now; 0: nothing. By its number first, as tables may
 * have two partitions that begin at one place.
 */
u64 dbd_bdev_sectors_now(struct block_device *bdev)
{
	struct gendisk *disk = bdev->bd_disk;
	sector_t start = bdev->bd_start_sect;
	struct block_device *part;
	unsigned long partno;
	u64 sectors = 0;

	/* Block devices are freed after a grace period. */
	rcu_read_lock();
	part = xa_load(&disk->part_tbl, bdev_partno(bdev));
	if (part && part->bd_start_sect == start) {
		sectors = bdev_nr_sectors(part);
	} else {
		xa_for_each_start(&disk->part_tbl, partno, part, 1) {
			if (part->bd_start_sect == start) {
				sectors = bdev_nr_sectors(part);
				break;
			}
		}
	}
	rcu_read_unlock();
	return sectors;
}

/* @a has taken the place of @b, or the other way round: at most one of them is in the disk's table. */
bool dbd_bdev_same_entry(struct block_device *a, struct block_device *b)
{
	return a->bd_disk == b->bd_disk && bdev_partno(a) == bdev_partno(b) &&
	       a->bd_start_sect == b->bd_start_sect;
}

/* A rescan has taken @bdev out of its disk's table; whoever refers to it may hold the last reference. */
bool dbd_bdev_is_deleted(struct block_device *bdev)
{
	return xa_load(&bdev->bd_disk->part_tbl, bdev_partno(bdev)) != bdev;
}

/* ---- superblocks ---- */

/*
 * The registered filesystems that live on a block device, each with a reference on its module
 * (module_put(type->owner) drops it). The list has no exported iterator, but it is meant to be
 * walked under RCU; sysfs is built in and the first to register, so all real ones come after it.
 */
unsigned int dbd_block_filesystems(struct file_system_type **out, unsigned int room)
{
	struct file_system_type *first = get_fs_type("sysfs"), *fs = first;
	unsigned int n = 0;

	if (!first)
		return 0;
	rcu_read_lock();
	hlist_for_each_entry_from_rcu(fs, list) {
		if ((fs->fs_flags & FS_REQUIRES_DEV) && n < room && try_module_get(fs->owner))
			out[n++] = fs;
	}
	rcu_read_unlock();
	module_put(first->owner);
	return n;
}

/* btrfs has no s_bdev, but is the holder of each of its devices. */
bool dbd_sb_is_on(struct super_block *sb, struct block_device *bdev)
{
	/* By its place too: what a rescan has made anew may have another number. */
	if (sb->s_bdev && (sb->s_bdev->bd_dev == bdev->bd_dev || dbd_sb_is_at(sb, bdev)))
		return true;
	return READ_ONCE(bdev->bd_holder) == sb;
}

/* The same place of the same disk: a rescan of the partitions makes new block devices of old ones. */
bool dbd_sb_is_at(struct super_block *sb, struct block_device *bdev)
{
	return sb->s_bdev && sb->s_bdev->bd_disk == bdev->bd_disk &&
	       sb->s_bdev->bd_start_sect == bdev->bd_start_sect;
}

/* The filesystem is on one block device, whose blocks it counts from the start. */
bool dbd_sb_is_simple(struct super_block *sb)
{
	return sb->s_bdev && sb->s_bdev->bd_dev == sb->s_dev;
}

bool dbd_sb_read_only(struct super_block *sb)
{
	return sb_rdonly(sb);
}

/* A reference that keeps the filesystem alive: deactivate_super() drops it. */
bool dbd_sb_get_active(struct super_block *sb)
{
	return atomic_inc_not_zero(&sb->s_active);
}

/* Somebody holds the filesystem frozen, or is about to. */
bool dbd_sb_writes_stopped(struct super_block *sb)
{
	if (!sb_start_write_trylock(sb))
		return true;
	sb_end_write(sb);
	return false;
}

unsigned long dbd_sb_block_size(struct super_block *sb)
{
	return sb->s_blocksize;
}

/* Writes back what is dirty. The caller holds an active reference. */
void dbd_sb_sync(struct super_block *sb)
{
	down_read(&sb->s_umount);
	if (!sb_rdonly(sb))
		sync_filesystem(sb);
	up_read(&sb->s_umount);
}

/*
 * What filesystems on partitions of one disk have in common. Only to tell disks apart; valid as long as the
 * filesystem is.
 */
const void *dbd_sb_disk(struct super_block *sb)
{
	return sb->s_bdi;
}

/*
 * Somebody writes back a whole filesystem of the same disk: sync_inodes_sb() holds this lock of the disk meanwhile.
 */
bool dbd_sb_disk_syncs(struct super_block *sb)
{
#ifdef CONFIG_CGROUP_WRITEBACK
	return rwsem_is_locked(&sb->s_bdi->wb_switch_rwsem);
#else
	return false;
#endif
}

bool dbd_sb_is_frozen(struct super_block *sb)
{
	return READ_ONCE(sb->s_writers.frozen) == SB_FREEZE_COMPLETE;
}

int dbd_sb_freeze(struct super_block *sb)
{
	if (sb->s_op->freeze_super)
		return sb->s_op->freeze_super(sb, FREEZE_HOLDER_KERNEL, NULL);
	return freeze_super(sb, FREEZE_HOLDER_KERNEL, NULL);
}

int dbd_sb_thaw(struct super_block *sb)
{
	if (sb->s_op->thaw_super)
		return sb->s_op->thaw_super(sb, FREEZE_HOLDER_KERNEL, NULL);
	return thaw_super(sb, FREEZE_HOLDER_KERNEL, NULL);
}

/*
 * A mount of a live filesystem that nobody sees, so that files can be opened whatever the caller's
 * namespace. The caller holds an active reference on @sb. MNT_INTERNAL: mntput() takes it down at
 * once.
 */
struct vfsmount *dbd_sb_private_mount(struct super_block *sb)
{
	struct fs_context *fc = fs_context_for_mount(sb->s_type, SB_KERNMOUNT);
	struct vfsmount *mnt;

	if (IS_ERR(fc))
		return ERR_CAST(fc);
	/* put_fs_context() drops both. */
	atomic_inc(&sb->s_active);
	fc->root = dget(sb->s_root);
	mnt = vfs_create_mount(fc);
	put_fs_context(fc);
	return mnt;
}

/* ---- mounting a device read-only ---- */

struct fs_context *dbd_mount_begin(const char *fs_type, const char *source)
{
	struct file_system_type *type = get_fs_type(fs_type);
	struct fs_context *fc;
	int err;

	if (!type)
		return ERR_PTR(-ENODEV);
	fc = fs_context_for_mount(type, SB_RDONLY | SB_KERNMOUNT);
	module_put(type->owner);
	if (IS_ERR(fc))
		return fc;
	err = vfs_parse_fs_string(fc, "source", source);
	if (err) {
		put_fs_context(fc);
		return ERR_PTR(err);
	}
	return fc;
}

/* "key" or "key=value", as for mount -o; only one. */
int dbd_mount_option(struct fs_context *fc, const char *option)
{
	const char *value = strchr(option, '=');
	char key[16];

	if (!value)
		return vfs_parse_fs_string(fc, option, NULL);
	if (value - option >= sizeof(key))
		return -EINVAL;
	strscpy(key, option, value - option + 1);
	return vfs_parse_fs_string(fc, key, value + 1);
}

/* Frees @fc in every case. */
struct vfsmount *dbd_mount_finish(struct fs_context *fc)
{
	struct vfsmount *mnt = fc_mount(fc);

	put_fs_context(fc);
	return mnt;
}

void dbd_mount_abort(struct fs_context *fc)
{
	put_fs_context(fc);
}

/* ---- paths ---- */

int dbd_lookup_dir(const char *path, struct path *out)
{
	return kern_path(path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY, out);
}

/* One name in a directory; a symbolic link is not followed. */
int dbd_lookup_in(const struct path *dir, const char *name, struct path *out)
{
	return vfs_path_lookup(dir->dentry, dir->mnt, name, 0, out);
}

/* A path whose root is @root. */
int dbd_lookup_below(const struct path *root, const char *path, struct path *out)
{
	while (*path == '/')
		path++;
	return vfs_path_lookup(root->dentry, root->mnt, path, LOOKUP_FOLLOW, out);
}

/* In bytes: all of it, and what unprivileged users can have. */
int dbd_free_space(const struct path *path, u64 *all, u64 *available)
{
	struct kstatfs st;
	int err = vfs_statfs(path, &st);

	if (err)
		return err;
	*all = st.f_bfree * st.f_bsize;
	*available = st.f_bavail * st.f_bsize;
	return 0;
}

struct file *dbd_open_path(const struct path *path, int flags)
{
	return dentry_open(path, flags | O_LARGEFILE, current_cred());
}

/* Opens a file that is known by its inode, whatever its name has become. */
struct file *dbd_open_inode(struct vfsmount *mnt, struct inode *inode, int flags)
{
	struct path path = { .mnt = mnt };
	struct file *file;

	path.dentry = d_find_alias(inode);
	if (!path.dentry)
		path.dentry = d_obtain_alias(igrab(inode));
	if (IS_ERR(path.dentry))
		return ERR_CAST(path.dentry);
	file = dbd_open_path(&path, flags);
	dput(path.dentry);
	return file;
}

/* A name of @inode: @path below the root of @mnt if it still is one, else any that is in memory. */
struct dentry *dbd_named_dentry(struct vfsmount *mnt, struct inode *inode, const char *path)
{
	struct dentry *dentry = NULL;
	struct path found;

	while (*path == '/')
		path++;
	if (!vfs_path_lookup(mnt->mnt_root, mnt, path, 0, &found)) {
		if (d_inode(found.dentry) == inode)
			dentry = dget(found.dentry);
		path_put(&found);
	}
	if (!dentry)
		dentry = d_find_alias(inode);
	if (dentry && IS_ROOT(dentry)) {
		dput(dentry);
		dentry = NULL;
	}
	return dentry ?: ERR_PTR(-ENOENT);
}

/* @dentry stays positive, for open files and others that hold it. */
int dbd_unlink(struct vfsmount *mnt, struct dentry *dentry)
{
	struct dentry *parent = dget_parent(dentry);
	struct inode *dir = d_inode(parent);
	int err = mnt_want_write(mnt);

	if (err)
		goto out;
	/* With the caller's reference alone, unlinking would take the inode away from it. */
	dget(dentry);
	inode_lock_nested(dir, I_MUTEX_PARENT);
	if (dentry->d_parent != parent || d_unhashed(dentry) || d_is_negative(dentry))
		err = -ESTALE;
	else
		err = vfs_unlink(mnt_idmap(mnt), dir, dentry, NULL);
	inode_unlock(dir);
	dput(dentry);
	mnt_drop_write(mnt);
out:
	dput(parent);
	return err;
}

/* ---- one file ---- */

const struct path *dbd_file_path(struct file *file)
{
	return &file->f_path;
}

struct inode *dbd_file_inode(struct file *file)
{
	return file_inode(file);
}

unsigned int dbd_inode_traits(struct inode *inode)
{
	unsigned int traits = 0;

	if (S_ISREG(inode->i_mode))
		traits |= DBD_INODE_REGULAR;
	if (S_ISDIR(inode->i_mode))
		traits |= DBD_INODE_DIRECTORY;
	if (IS_SWAPFILE(inode))
		traits |= DBD_INODE_SWAPFILE;
	if (IS_ENCRYPTED(inode))
		traits |= DBD_INODE_ENCRYPTED;
	if (IS_VERITY(inode))
		traits |= DBD_INODE_VERITY;
	if (IS_DAX(inode))
		traits |= DBD_INODE_DAX;
	if (inode_is_open_for_write(inode))
		traits |= DBD_INODE_WRITERS;
	if (IS_IMMUTABLE(inode) || IS_APPEND(inode))
		traits |= DBD_INODE_LOCKED_DOWN;
	return traits;
}

u64 dbd_inode_size(struct inode *inode)
{
	return i_size_read(inode);
}

/* Bytes of disk space. */
u64 dbd_inode_blocks(struct inode *inode)
{
	return (u64)READ_ONCE(inode->i_blocks) << SECTOR_SHIFT;
}

/*
 * From here on nobody but us changes content, size or place of the file, not even through a
 * descriptor or a mapping that was made before.
 */
int dbd_inode_protect(struct inode *inode)
{
	int err = -ETXTBSY;

	inode_lock(inode);
	if (!IS_SWAPFILE(inode)) {
		inode->i_flags |= S_SWAPFILE;
		err = inode_drain_writes(inode);
		if (err)
			inode->i_flags &= ~S_SWAPFILE;
	}
	inode_unlock(inode);
	return err;
}

u64 dbd_inode_number(struct inode *inode)
{
	return inode->i_ino;
}

u32 dbd_inode_generation(struct inode *inode)
{
	return inode->i_generation;
}

/*
 * Finds an inode by its number, as an NFS server does, and protects it. The caller holds s_umount
 * or an active reference. Gives a reference on the inode. -ESTALE: there is no such file.
 */
int dbd_adopt_inode(struct super_block *sb, u64 ino, u32 generation, struct inode **out)
{
	const struct export_operations *ops = sb->s_export_op;
	/* struct fid, and xfs's own for large numbers (fs/xfs/xfs_export.h). */
	struct {
		u32 word[6];
	} fid = { };
	int type = FILEID_INO32_GEN, len = 2;
	struct dentry *dentry;
	struct inode *inode;
	int err = 0;

	if (!ops || !ops->fh_to_dentry)
		return -EOPNOTSUPP;
	if (ino > U32_MAX) {
		type = FILEID_INO32_GEN | 0x80;
		len = 3;
		memcpy(&fid.word[0], &ino, sizeof(ino));
		fid.word[2] = generation;
	} else {
		fid.word[0] = ino;
		fid.word[1] = generation;
	}
	dentry = ops->fh_to_dentry(sb, (struct fid *)&fid, len, type);
	if (IS_ERR_OR_NULL(dentry))
		return dentry ? PTR_ERR(dentry) : -ESTALE;
	inode = igrab(d_inode(dentry));
	dput(dentry);
	if (!inode)
		return -ESTALE;
	if (!S_ISREG(inode->i_mode) || !inode->i_nlink)
		err = -ESTALE;
	else
		err = dbd_inode_protect(inode);
	if (err)
		iput(inode);
	else
		*out = inode;
	return err;
}

void dbd_inode_unprotect(struct inode *inode)
{
	inode_lock(inode);
	inode->i_flags &= ~S_SWAPFILE;
	inode_unlock(inode);
}

/* The flag stops us too; under the lock nobody sees that it is gone for a moment. */
int dbd_set_size_protected(struct file *file, u64 size)
{
	struct inode *inode = file_inode(file);
	struct iattr attr = {
		.ia_valid = ATTR_SIZE | ATTR_FORCE,
		.ia_size = size,
	};
	int err;

	file_start_write(file);
	inode_lock(inode);
	inode->i_flags &= ~S_SWAPFILE;
	err = notify_change(file_mnt_idmap(file), file->f_path.dentry, &attr, NULL);
	inode->i_flags |= S_SWAPFILE;
	inode_unlock(inode);
	file_end_write(file);
	return err;
}

/* vfs_fallocate() refuses a swap file; the filesystem's own operation does not. */
int dbd_fallocate_protected(struct file *file, u64 start, u64 len)
{
	int err;

	if (!file->f_op->fallocate)
		return -EOPNOTSUPP;
	if (start + len > file_inode(file)->i_sb->s_maxbytes)
		return -EFBIG;
	file_start_write(file);
	err = file->f_op->fallocate(file, 0, start, len);
	file_end_write(file);
	return err;
}

/*
 * Where a protected file lies: the contract that swap files use. -EOPNOTSUPP when the filesystem
 * does not offer it, or keeps books about it that would have to be undone (swap_deactivate).
 *
 * Pages are those of the device that lie within one piece of the file, numbered in its order: what
 * does not fill one is left out, which happens when the filesystem's blocks are smaller.
 */
int dbd_map_file(struct file *file, dev_t *dev,
		 int (*extent)(void *ctx, u64 page, u64 block, u64 pages), void *ctx)
{
	const struct address_space_operations *ops = file->f_mapping->a_ops;
	struct inode *inode = file_inode(file);
	struct swap_info_struct *sis;
	struct rb_node *node, *next;
	sector_t span = 0;
	int err;

	if (!ops->swap_activate || ops->swap_deactivate)
		return -EOPNOTSUPP;
	if (i_size_read(inode) >> PAGE_SHIFT >= UINT_MAX)
		return -EFBIG;
	sis = kzalloc(sizeof(*sis), GFP_KERNEL);
	if (!sis)
		return -ENOMEM;
	sis->max = UINT_MAX;
	sis->bdev = inode->i_sb->s_bdev;
	sis->swap_file = file;

	inode_lock(inode);
	err = ops->swap_activate(sis, file, &span);
	inode_unlock(inode);
	if (err >= 0) {
		err = 0;
		*dev = sis->bdev ? sis->bdev->bd_dev : 0;
		for (node = rb_first(&sis->swap_extent_root); node && !err; node = rb_next(node)) {
			struct swap_extent *se = rb_entry(node, struct swap_extent, rb_node);

			err = extent(ctx, se->start_page, se->start_block, se->nr_pages);
		}
	}
	for (node = rb_first_postorder(&sis->swap_extent_root); node; node = next) {
		next = rb_next_postorder(node);
		kfree(rb_entry(node, struct swap_extent, rb_node));
	}
	kfree(sis);
	return err;
}

/* ---- GETFSMAP ---- */

/* @user: a struct fsmap_head in the calling process. */
long dbd_getfsmap(struct file *dir, unsigned long user)
{
	if (!dir->f_op->unlocked_ioctl)
		return -EOPNOTSUPP;
	return dir->f_op->unlocked_ioctl(dir, FS_IOC_GETFSMAP, user);
}

/* Memory of the calling process; an error as IS_ERR_VALUE(). */
unsigned long dbd_user_map(size_t len)
{
	if (!current->mm)
		return -EINVAL;
	return vm_mmap(NULL, 0, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
}

void dbd_user_unmap(unsigned long addr, size_t len)
{
	vm_munmap(addr, len);
}

/* ---- unmount watch ---- */

/*
 * A mark keeps the inode in memory without keeping the filesystem mounted. Life of a mark: added
 * with one reference of ours; removed by dbd_watch_remove() or by the unmount, whichever comes
 * first; freed by fsnotify's reaper after all event handlers that could have found it.
 */
struct dbd_watch {
	struct fsnotify_mark mark;
	void *owner;
};

static struct fsnotify_group *watch_group;
static const struct dbd_watch_ops *watch_ops;
/* Watches whose memory is not freed yet. */
static atomic_t watch_count = ATOMIC_INIT(0);

static int watch_event(struct fsnotify_mark *mark, u32 mask, struct inode *inode,
		       struct inode *dir, const struct qstr *name, u32 cookie)
{
	if (mask & FS_UNMOUNT)
		watch_ops->unmounted(container_of(mark, struct dbd_watch, mark)->owner);
	return 0;
}

static void watch_free(struct fsnotify_mark *mark)
{
	struct dbd_watch *watch = container_of(mark, struct dbd_watch, mark);

	watch_ops->release(watch->owner);
	kfree(watch);
	if (atomic_dec_and_test(&watch_count))
		wake_up_var(&watch_count);
}

static const struct fsnotify_ops watch_fsnotify_ops = {
	.handle_inode_event = watch_event,
	.free_mark = watch_free,
};

int dbd_watch_init(const struct dbd_watch_ops *ops)
{
	struct fsnotify_group *group = fsnotify_alloc_group(&watch_fsnotify_ops, 0);

	if (IS_ERR(group))
		return PTR_ERR(group);
	watch_ops = ops;
	watch_group = group;
	return 0;
}

/*
 * All watches have been removed. Waits until none is left in memory, then until the reaper, which
 * calls our code, has returned from it; then our reference on the group is the last one.
 */
void dbd_watch_exit(void)
{
	wait_var_event(&watch_count, !atomic_read(&watch_count));
	fsnotify_wait_marks_destroyed();
	fsnotify_put_group(watch_group);
	watch_group = NULL;
}

/* Takes @owner over in every case: release() is called for it, now or later. */
int dbd_watch_add(struct inode *inode, void *owner, struct dbd_watch **out)
{
	struct dbd_watch *watch = kzalloc(sizeof(*watch), GFP_KERNEL);
	int err;

	if (!watch) {
		watch_ops->release(owner);
		return -ENOMEM;
	}
	atomic_inc(&watch_count);
	watch->owner = owner;
	fsnotify_init_mark(&watch->mark, watch_group);
	watch->mark.mask = FS_UNMOUNT;
	err = fsnotify_add_mark(&watch->mark, inode, FSNOTIFY_OBJ_TYPE_INODE, 0);
	if (err)
		fsnotify_put_mark(&watch->mark);
	else
		*out = watch;
	return err;
}

/* An event handler that has started goes on; none starts for this watch once the SRCU is over. */
void dbd_watch_remove(struct dbd_watch *watch)
{
	fsnotify_destroy_mark(&watch->mark, watch_group);
	fsnotify_put_mark(&watch->mark);
}
