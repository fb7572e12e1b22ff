// Package record keeps who made which VM, in small files in the cluster file system, under
// /etc/pve/priv/pve-rigaud/: one per VM in vms/, and the highest VMID ever given out in vmids/.
//
// A VM's file, vms/<hash of owner and name>.<generation>, is claim, identity and memory in one. It is created with
// O_EXCL, which is atomic in the whole cluster and needs quorum, before the first PVE call. A claim whose holder died is
// taken over by creating the next generation, and the highest generation holds; a holder therefore asks Claim.Check
// before each thing it does. The file is removed when the VM is gone.
//
// What keeps this safe without locks:
//   - Every claim has a random token, and a take-over names the token it takes over. So neither a generation number
//     that is used a second time nor a take-over that comes too late is mistaken for something else.
//   - Lower generations are removed from the lowest up, and only by the holder of a higher one. So the generations
//     that exist have no gap, and a holder whose file is there and whose next generation is not is the highest.
//   - To create and to write a file are two rounds in pmxcfs: a file that is empty or cut short is being written. It is
//     reported as such, never as absent and never as garbage, and counts as dead after 60 s.
//
// The calls block for as long as the file system does.
package record
