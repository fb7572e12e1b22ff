package spec

import (
	"cmp"
	"encoding/json"
)

// ImagePrepare is the wish behind an ImagePrepare request: a VMImage resource. Its sources do not exclude each other.
type ImagePrepare struct {
	Name        string // of the image, and so of the template that is made of it
	StorageHint string // the manager leaves it empty

	Proxmox      *ProxmoxSource
	Libvirt      *LibvirtSource
	HTTP         *HTTPSource
	Registry     *RegistrySource
	Foreign      []string // sources and options for other hypervisors, such as "source.vsphere"
	Prepare      *Prepare // nil: nothing was said
	Metadata     ImageMetadata
	Distribution Distribution

	Unknown []string `json:"-"`
}

// ProxmoxSource is a template of PVE, or says how one is to be made.
type ProxmoxSource struct {
	TemplateID                          *int
	TemplateName, Storage, Node, Format string
	FullClone                           *bool // nil: true
}

// LibvirtSource is a file, or a URL that may be downloaded instead.
type LibvirtSource struct {
	Path, URL, Format, Checksum, ChecksumType, StoragePool string
}

// HTTPSource is a URL to download.
type HTTPSource struct {
	URL                    string
	Headers                map[string]string
	Checksum, ChecksumType string
	Authentication         *HTTPAuthentication
	Timeout                Duration // 0: none was said
}

// HTTPAuthentication says what a server wants to see.
type HTTPAuthentication struct {
	BasicAuth, Bearer, ClientCert *SecretKeys
}

// SecretKeys names keys of a Secret, which the manager does not resolve: two for basic authentication and for client
// certificates, one for a token.
type SecretKeys struct {
	SecretRef                SecretRef
	UsernameKey, PasswordKey string
	TokenKey                 string
	CertKey, KeyKey          string
}

// RegistrySource is a disk in a container image.
type RegistrySource struct {
	Image         string
	PullSecretRef *SecretRef
	Format        string
}

// Prepare says how an image is to be prepared. The manager leaves away what is false.
type Prepare struct {
	OnMissing        string // Import, Fail or Wait
	ValidateChecksum bool
	Timeout          Duration
	Retries          *int
	Force            bool

	PreferredFormat string // of the disk as it is stored
	Compression     bool   // while it is imported

	EnableCompression, RemoveUnusedSpace, EnableDeltaSync bool
	ConvertFormat                                         string
}

// ImageMetadata describes an image for people.
type ImageMetadata struct {
	DisplayName, Description, Version string
	Architecture                      string // amd64, arm64, x86_64 or aarch64
	Tags, Annotations                 map[string]string
}

// Distribution is the operating system in an image.
type Distribution struct {
	Name, Version, Variant string
	Family                 string // linux, windows, bsd or other
	Kernel                 Kernel
}

// Kernel is the kernel in an image.
type Kernel struct{ Version, Type string }

// resourceImage is VMImageSpec (v1beta1).
type resourceImage struct {
	Source struct {
		Proxmox             *ProxmoxSource
		Libvirt             *LibvirtSource
		HTTP                *HTTPSource
		Registry            *RegistrySource
		VSphere, DataVolume json.RawMessage
	}
	Prepare *struct {
		OnMissing        string
		ValidateChecksum bool
		Timeout          Duration
		Retries          *int
		Force            bool
		Storage          struct {
			PreferredFormat  string
			Compression      bool
			VSphere, Libvirt json.RawMessage
		}
		Optimization struct {
			EnableCompression, RemoveUnusedSpace bool
			ConvertFormat                        string
			EnableDeltaSync                      bool
		}
	}
	Metadata     ImageMetadata
	Distribution Distribution
}

// ImagePrepareInput is an ImagePrepare request as it stands on the wire.
type ImagePrepareInput struct{ ImageJSON, TargetName, StorageHint string }

// DecodeImagePrepare checks and decodes an ImagePrepare request. Every error is an *Error.
func DecodeImagePrepare(in ImagePrepareInput) (ImagePrepare, error) {
	if err := checkName(place{payload: "target_name"}, in.TargetName); err != nil {
		return ImagePrepare{}, err
	}
	var r resourceImage
	unknown, err := decode(place{payload: "image_json", resource: true}, in.ImageJSON, true, &r)
	if err != nil {
		return ImagePrepare{}, err
	}
	i := ImagePrepare{
		Name: in.TargetName, StorageHint: in.StorageHint,
		Proxmox: r.Source.Proxmox, Libvirt: r.Source.Libvirt, HTTP: r.Source.HTTP, Registry: r.Source.Registry,
		Foreign: r.foreign(), Prepare: r.prepare(), Metadata: r.Metadata, Distribution: r.Distribution, Unknown: unknown,
	}
	if err := i.check(); err != nil {
		return ImagePrepare{}, err
	}
	return i, nil
}

func (r *resourceImage) prepare() *Prepare {
	p := r.Prepare
	if p == nil {
		return nil
	}
	return &Prepare{
		OnMissing: p.OnMissing, ValidateChecksum: p.ValidateChecksum, Timeout: p.Timeout, Retries: p.Retries, Force: p.Force,
		PreferredFormat: p.Storage.PreferredFormat, Compression: p.Storage.Compression,
		EnableCompression: p.Optimization.EnableCompression, RemoveUnusedSpace: p.Optimization.RemoveUnusedSpace,
		ConvertFormat: p.Optimization.ConvertFormat, EnableDeltaSync: p.Optimization.EnableDeltaSync,
	}
}

// foreign names what is said to other hypervisors only.
func (r *resourceImage) foreign() []string {
	var names []string
	add := func(name string, value json.RawMessage) {
		if len(value) > 0 && string(value) != "null" {
			names = append(names, name)
		}
	}
	add("source.vsphere", r.Source.VSphere)
	add("source.dataVolume", r.Source.DataVolume)
	if p := r.Prepare; p != nil {
		add("prepare.storage.vsphere", p.Storage.VSphere)
		add("prepare.storage.libvirt", p.Storage.Libvirt)
	}
	return names
}

func (i *ImagePrepare) check() error {
	at := func(prefix string) place { return place{payload: "image_json", prefix: prefix, resource: true} }
	var err error
	if p := i.Proxmox; p != nil {
		p1 := at("source.proxmox.")
		err = cmp.Or(optional(p1, "templateID", p.TemplateID, 100, 999_999_999, ""), oneOf(p1, "format", p.Format, "raw", "qcow2", "vmdk"))
	}
	if l := i.Libvirt; l != nil {
		p := at("source.libvirt.")
		err = cmp.Or(err, oneOf(p, "format", l.Format, imageFormats...), oneOf(p, "checksumType", l.ChecksumType, checksumTypes...))
	}
	if h := i.HTTP; h != nil {
		err = cmp.Or(err, oneOf(at("source.http."), "checksumType", h.ChecksumType, checksumTypes...))
	}
	if r := i.Registry; r != nil {
		err = cmp.Or(err, oneOf(at("source.registry."), "format", r.Format, imageFormats...))
	}
	if p := i.Prepare; p != nil {
		err = cmp.Or(err, oneOf(at("prepare."), "onMissing", p.OnMissing, "Import", "Fail", "Wait"),
			optional(at("prepare."), "retries", p.Retries, 0, 10, ""),
			oneOf(at("prepare.storage."), "preferredFormat", p.PreferredFormat, imageFormats...),
			oneOf(at("prepare.optimization."), "convertFormat", p.ConvertFormat, imageFormats...))
	}
	return cmp.Or(err,
		oneOf(at("metadata."), "architecture", i.Metadata.Architecture, "amd64", "arm64", "x86_64", "aarch64"),
		oneOf(at("distribution."), "family", i.Distribution.Family, "linux", "windows", "bsd", "other"))
}
