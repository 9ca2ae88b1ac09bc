. /t/cases/lib.sh
insmod /t/bin/dattobd.ko
mkfs.ext4 -q -F -b 4096 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1 /dev/vda
mount -o noinit_itable /dev/vda $M
dbdctl setup-snapshot -f 3000 /dev/vda $M/.cow 0
cp /bin/bash $M/b2; sync
dbdctl transition-to-incremental 0
dbdctl transition-to-snapshot -f 3000 $M/.cow1 0
ls -la $M/.cow; filefrag -v $M/.cow | tail -8
time dbdctl changed $M/.cow | wc -l
strace -r -e trace=lseek,pread64 dbdctl changed $M/.cow 2>&1 >/dev/null | cut -c1-90 | head -60
