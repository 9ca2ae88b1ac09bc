/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the filesystem side cannot say in Rust: inline functions of the VFS, and structs that the
 * kernel's Rust bindings do not hold in every version (fs_context, fsnotify_mark,
 * swap_info_struct). Each function is one step; order and policy are in Rust.
 */
#ifndef DATTOBD_SHIM_FS_H
#define DATTOBD_SHIM_FS_H

#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/path.h>

/* dbd_bdev_traits() */
#define DBD_BDEV_ZONED		1
#define DBD_BDEV_DAX		2
#define DBD_BDEV_LARGE_BLOCKS	4
#define DBD_BDEV_OURS		8

/* dbd_inode_traits() */
#define DBD_INODE_REGULAR	1
#define DBD_INODE_DIRECTORY	2
#define DBD_INODE_SWAPFILE	4
#define DBD_INODE_ENCRYPTED	8
#define DBD_INODE_VERITY	16
#define DBD_INODE_DAX		32
#define DBD_INODE_WRITERS	64
#define DBD_INODE_LOCKED_DOWN	128

struct file *dbd_bdev_open(dev_t dev);
unsigned int dbd_bdev_traits(struct block_device *bdev);
u64 dbd_bdev_sectors_now(struct block_device *bdev);
bool dbd_bdev_same_entry(struct block_device *a, struct block_device *b);
bool dbd_bdev_is_deleted(struct block_device *bdev);

unsigned int dbd_block_filesystems(struct file_system_type **out, unsigned int room);
bool dbd_sb_is_on(struct super_block *sb, struct block_device *bdev);
bool dbd_sb_is_at(struct super_block *sb, struct block_device *bdev);
bool dbd_sb_is_simple(struct super_block *sb);
bool dbd_sb_read_only(struct super_block *sb);
bool dbd_sb_get_active(struct super_block *sb);
bool dbd_sb_writes_stopped(struct super_block *sb);
unsigned long dbd_sb_block_size(struct super_block *sb);
void dbd_sb_sync(struct super_block *sb);
const void *dbd_sb_disk(struct super_block *sb);
bool dbd_sb_disk_syncs(struct super_block *sb);
bool dbd_sb_is_frozen(struct super_block *sb);
int dbd_sb_freeze(struct super_block *sb);
int dbd_sb_thaw(struct super_block *sb);
struct vfsmount *dbd_sb_private_mount(struct super_block *sb);

struct fs_context *dbd_mount_begin(const char *fs_type, const char *source);
int dbd_mount_option(struct fs_context *fc, const char *option);
struct vfsmount *dbd_mount_finish(struct fs_context *fc);
void dbd_mount_abort(struct fs_context *fc);

int dbd_lookup_dir(const char *path, struct path *out);
int dbd_lookup_in(const struct path *dir, const char *name, struct path *out);
int dbd_lookup_below(const struct path *root, const char *path, struct path *out);
int dbd_free_space(const struct path *path, u64 *all, u64 *available);
struct file *dbd_open_path(const struct path *path, int flags);
struct file *dbd_open_inode(struct vfsmount *mnt, struct inode *inode, int flags);
struct dentry *dbd_named_dentry(struct vfsmount *mnt, struct inode *inode, const char *path);
int dbd_unlink(struct vfsmount *mnt, struct dentry *dentry);

const struct path *dbd_file_path(struct file *file);
struct inode *dbd_file_inode(struct file *file);
u64 dbd_inode_number(struct inode *inode);
u32 dbd_inode_generation(struct inode *inode);
int dbd_adopt_inode(struct super_block *sb, u64 ino, u32 generation, struct inode **out);
bool dbd_bdev_claimed(struct block_device *bdev);
bool dbd_bdev_gone(struct block_device *bdev);
unsigned int dbd_inode_traits(struct inode *inode);
u64 dbd_inode_size(struct inode *inode);
u64 dbd_inode_blocks(struct inode *inode);
int dbd_inode_protect(struct inode *inode);
void dbd_inode_unprotect(struct inode *inode);
int dbd_set_size_protected(struct file *file, u64 size);
int dbd_fallocate_protected(struct file *file, u64 start, u64 len);
int dbd_map_file(struct file *file, dev_t *dev,
		 int (*extent)(void *ctx, u64 page, u64 block, u64 pages), void *ctx);

long dbd_getfsmap(struct file *dir, unsigned long user);
unsigned long dbd_user_map(size_t len);
void dbd_user_unmap(unsigned long addr, size_t len);

struct dbd_watch;
struct dbd_watch_ops {
	/* FS_UNMOUNT of the watched inode: may sleep, s_umount is held. */
	void (*unmounted)(void *owner);
	/* Nobody calls unmounted() for this owner any more. May sleep. */
	void (*release)(void *owner);
};
int dbd_watch_init(const struct dbd_watch_ops *ops);
void dbd_watch_exit(void);
int dbd_watch_add(struct inode *inode, void *owner, struct dbd_watch **out);
void dbd_watch_remove(struct dbd_watch *watch);

#endif
