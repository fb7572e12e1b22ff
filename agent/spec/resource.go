package spec

// resourceClass is VMClassSpec (v1beta1), as a Clone request carries it.
type resourceClass struct {
	CPU              int
	Memory           quantity
	Firmware         string
	DiskDefaults     *resourceDisk
	GuestToolsPolicy string
	ExtraConfig      map[string]string
	ResourceLimits   *resourceLimits
	// The same keys but for the case of letters.
	PerformanceProfile *PerformanceProfile
	SecurityProfile    *resourceSecurity
}

type resourceDisk struct {
	Type         string
	Size         quantity
	IOPS         *int
	StorageClass string
}

type resourceLimits struct {
	CPULimit, CPUReservation, CPUShares *int
	MemoryLimit, MemoryReservation      *quantity
}

type resourceSecurity struct {
	SecureBoot, TPMEnabled bool
	TPMVersion             string
	VTDEnabled             bool
	EncryptionPolicy       struct {
		Enabled           bool
		KeyProvider       string
		RequireEncryption bool
	}
}

// class is the same in the types of Create.
func (r *resourceClass) class() *Class {
	c := &Class{
		CPU: r.CPU, MemoryMiB: r.Memory.in(mib), Firmware: r.Firmware, GuestToolsPolicy: r.GuestToolsPolicy,
		ExtraConfig: r.ExtraConfig, PerformanceProfile: r.PerformanceProfile,
	}
	if d := r.DiskDefaults; d != nil {
		c.DiskDefaults = &DiskDefaults{Type: d.Type, SizeGiB: d.Size.in(gib), IOPS: d.IOPS, StorageClass: d.StorageClass}
	}
	if l := r.ResourceLimits; l != nil {
		c.ResourceLimits = &ResourceLimits{
			CPULimit: l.CPULimit, CPUReservation: l.CPUReservation, CPUShares: l.CPUShares,
			MemoryLimitMiB: l.MemoryLimit.optional(mib), MemoryReservationMiB: l.MemoryReservation.optional(mib),
		}
	}
	if s := r.SecurityProfile; s != nil {
		c.SecurityProfile = &SecurityProfile{
			SecureBoot: s.SecureBoot, TPMEnabled: s.TPMEnabled, TPMVersion: s.TPMVersion, VTDEnabled: s.VTDEnabled,
			EncryptionEnabled: s.EncryptionPolicy.Enabled, KeyProvider: s.EncryptionPolicy.KeyProvider,
			RequireEncryption: s.EncryptionPolicy.RequireEncryption,
		}
	}
	return c
}

func (q *quantity) optional(unit int64) *int {
	if q == nil {
		return nil
	}
	n := q.in(unit)
	return &n
}
