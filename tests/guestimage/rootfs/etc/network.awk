# Prints "MAC address/prefix gateway" for each interface with a fixed IPv4
# address in a cloud-init network-config of version 1 (Proxmox VE's own) or 2.
BEGIN { servers = 1000 }
function emit() {
	if (mac != "" && addr != "") print tolower(mac), addr (mask != "" ? "/" mask : ""), gw
	mac = addr = mask = gw = dest = ""
}
function v4(s) { return s ~ /^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+(\/[0-9]+)?$/ }
{
	match($0, /^ */)
	depth = RLENGTH
	if (depth <= servers) servers = 1000 # the block of name servers has ended
	if ($0 ~ /type: *nameserver|nameservers:/) servers = depth
	if ($0 ~ /type: *(physical|bond|vlan)|match:/) emit()
	gsub(/[]["'{},]/, " ")
	for (i = 1; i <= NF; i++) {
		if ($i ~ /^mac_?address:$/) { mac = $(++i); continue }
		if ($i == "netmask:") { mask = $(++i); continue }
		if ($i == "to:") { dest = $(++i); continue }
		if ($i == "via:" && dest != "default" && dest != "0.0.0.0/0") { i++; continue }
		if ($i ~ /^(gateway|gateway4|via):$/) { if (v4($(++i))) gw = $i; continue }
		if (addr == "" && v4($i) && depth < servers && $0 !~ /nameservers:/) addr = $i
	}
}
END { emit() }
