package pve

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Storage is a storage as a node sees it.
type Storage struct {
	Storage string `json:"storage"`
	Type    string `json:"type"`    // "dir", "lvmthin", "rbd", ...
	Content string `json:"content"` // "images,iso,snippets", in no order
	Active  Bool   `json:"active"`  // usable right now
	Enabled Bool   `json:"enabled"`
	Shared  Bool   `json:"shared"` // the same content on every node
	Total   Int    `json:"total"`  // bytes, as Used and Avail
	Used    Int    `json:"used"`
	Avail   Int    `json:"avail"`
}

// Holds reports whether the storage takes that type of content, as "images" or "snippets".
func (s Storage) Holds(content string) bool {
	return slices.Contains(strings.Split(s.Content, ","), content)
}

// Storages lists the storages of a node that our credentials may see.
func (c *Client) Storages(ctx context.Context, node string) ([]Storage, error) {
	var out []Storage
	err := c.Call(ctx, http.MethodGet, nodePath(node, "storage"), nil, &out)
	return out, err
}

// Volume is an entry of a storage.
type Volume struct {
	VolID   string `json:"volid"`   // "storage:name"
	Content string `json:"content"` // "images", "iso", ...
	Format  string `json:"format"`  // "qcow2", "raw", ...
	VMID    Int    `json:"vmid"`    // owner, or 0
	Parent  string `json:"parent"`  // of a linked clone, in the storage's own words
	Size    Int    `json:"size"`    // bytes, as the guest sees it
	Used    Int    `json:"used"`    // bytes on the storage, or 0
	CTime   Int    `json:"ctime"`   // Unix time
}

// ContentQuery filters a storage's content; zero fields do not. With a VMID PVE also lists what belongs to none.
type ContentQuery struct {
	Content string
	VMID    int
}

// Content lists the volumes on a storage.
func (c *Client) Content(ctx context.Context, node, storage string, q ContentQuery) ([]Volume, error) {
	v := url.Values{}
	setText(v, "content", q.Content)
	setInt(v, "vmid", q.VMID)
	var out []Volume
	err := c.Call(ctx, http.MethodGet, nodePath(node, "storage", storage, "content"), v, &out)
	return out, err
}

// DeleteVolume removes a volume ("storage:name"). The UPID is empty where PVE had removed it before it answered.
func (c *Client) DeleteVolume(ctx context.Context, node, volid string) (UPID, error) {
	storage, name, ok := strings.Cut(volid, ":")
	path := nodePath(node, append([]string{"storage", storage, "content"}, strings.Split(volid, "/")...)...)
	if !ok || storage == "" || name == "" {
		return "", request{method: http.MethodDelete, path: path}.lost(false, errNoVolumeID)
	}
	return c.task(ctx, http.MethodDelete, path, nil)
}
