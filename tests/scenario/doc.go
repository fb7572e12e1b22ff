// Package scenario runs stories about a whole cluster: what is done to it stands in a text file, a step per line, and
// what came of it is compared with a log that was read and found right.
//
// A story happens in a [World]: a simulated PVE cluster with agents on its nodes. There is one in a single process and
// in virtual time, in which hours take seconds. Whatever happens, four numbers have to be zero at the end of each
// story: two VMs for one name; ids that were told to a client and are unknown now; VMs that were said not to exist and
// do; and VMs, volumes and records that are left half made.
//
// The steps, beside those of the simulated cluster (partition, cut, heal, node, migrate, ...):
//
//	create NAME via NODE[,NODE...] [on NODE] [with user-data] [retry TIME] [deadline TIME] [in background as JOB]
//	                             as the manager does: ask, then poll the task
//	                             on: from the template of that node
//	                             retry: again after an error, through the next of the nodes
//	                             deadline: of each call, instead of the manager's
//	delete NAME|ID via NODE ... [retry TIME]
//	describe NAME|ID via NODE ...
//	list via NODE
//	off NAME|ID via NODE         switch the power off
//	duplicate create|delete|off NAME via NODE
//	                             the same request twice at once, and again after the answers
//	race NAME via NODE,NODE,...  one create through each of the nodes at once, until all have answered
//	burst N NAME via NODE,...    N races with N names, each VM deleted again
//	snippets NAME                which nodes have what the VM's cloud-init drive is made from
//	await JOB                    print what came of a step in the background
//	task JOB via NODE            ask another node for the task of such a step
//	kill|stop|start agent NODE
//	kill agent NODE at write N   before the Nth write of its journal from now on
//	start agent NODE version VERSION protocol MIN-MAX
//	clock NODE +2h               the wall clock jumps
//	gossip cut NODE NODE, gossip heal NODE NODE
//	lose NODE NODE 30%           of the packets between the two
//	rotate gossip key
//	wait 10s
//	wait until NAME on NODE|gone|ready [within TIME]
//	settle                       everything is repaired, and time goes by
//	check                        the four numbers
//
// Any step but wait may end with "expect ok", "expect error CODE", "expect exists" or "expect gone".
package scenario
