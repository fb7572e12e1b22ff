package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// An ISO 9660 image with Rock Ridge names, as `genisoimage -R` makes it for
// Proxmox VE, with one directory. ECMA-119 gives the fields and their offsets;
// the system use fields are those of SUSP and RRIP 1.12.
const (
	sector        = 2048
	descriptorAt  = 16 // sector of the volume descriptor
	pathTableAt   = 18 // little-endian, then big-endian
	rootAt        = 20
	pathTableSize = 10 // of the root alone

	modeDir  = 0o040555
	modeFile = 0o100444
)

// iso makes an image of the files, named by label.
func iso(label string, files map[string][]byte) ([]byte, error) {
	if len(label) > 32 {
		return nil, fmt.Errorf("label %q is longer than 32 characters", label)
	}
	names := slices.Sorted(maps.Keys(files))
	// The size of the root directory decides where the files begin, and does
	// not depend on it: lay it out twice.
	root, err := rootDirectory(names, files, 0, 0)
	if err != nil {
		return nil, err
	}
	first := rootAt + len(root)/sector
	root, err = rootDirectory(names, files, len(root), first)
	if err != nil {
		return nil, err
	}
	image := bytes.NewBuffer(make([]byte, descriptorAt*sector))
	content := root
	for _, name := range names {
		content = append(content, padded(files[name])...)
	}
	image.Write(volumeDescriptor(label, rootAt+len(content)/sector, len(root)))
	image.Write(padded([]byte("\xffCD001\x01")))
	image.Write(padded(pathTable(binary.LittleEndian)))
	image.Write(padded(pathTable(binary.BigEndian)))
	image.Write(content)
	return image.Bytes(), nil
}

// padded fills up to whole sectors.
func padded(b []byte) []byte {
	return append(slices.Clip(b), make([]byte, -len(b)&(sector-1))...)
}

// both writes a number in both byte orders, as ECMA-119 7.2.3 and 7.3.3 ask.
func both(v int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(v))
	return binary.BigEndian.AppendUint32(b, uint32(v))
}

func both16(v int) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(v))
	return binary.BigEndian.AppendUint16(b, uint16(v))
}

func spaces(s string, n int) []byte {
	return []byte(s + strings.Repeat(" ", n-len(s)))
}

// volumeDescriptor is ECMA-119 8.4. All dates are "not specified".
func volumeDescriptor(label string, sectors, rootSize int) []byte {
	var b bytes.Buffer
	b.WriteString("\x01CD001\x01\x00")
	b.Write(spaces("LINUX", 32))
	b.Write(spaces(label, 32))
	b.Write(make([]byte, 8))
	b.Write(both(sectors))
	b.Write(make([]byte, 32))
	b.Write(both16(1)) // volumes in the set
	b.Write(both16(1)) // of which this is the first
	b.Write(both16(sector))
	b.Write(both(pathTableSize))
	b.Write(binary.LittleEndian.AppendUint32(nil, pathTableAt))
	b.Write(make([]byte, 4))
	b.Write(binary.BigEndian.AppendUint32(nil, pathTableAt+1))
	b.Write(make([]byte, 4))
	b.Write(record("\x00", rootAt, rootSize, true, nil))
	b.Write(spaces("", 4*128+3*37)) // who made it, and of what
	for range 4 {
		b.WriteString(strings.Repeat("0", 16) + "\x00")
	}
	b.WriteString("\x01\x00")
	return padded(b.Bytes())
}

func pathTable(order binary.AppendByteOrder) []byte {
	b := []byte{1, 0}
	b = order.AppendUint32(b, rootAt)
	b = order.AppendUint16(b, 1)
	return append(b, 0, 0)
}

// rootDirectory lists itself, its parent (itself again) and the files, which
// lie one behind the other from sector first on.
func rootDirectory(names []string, files map[string][]byte, size, first int) ([]byte, error) {
	dot := slices.Concat([]byte("SP\x07\x01\xbe\xef\x00"), posix(modeDir, 2), []byte("ER\x12\x01\x0a\x00\x00\x01RRIP_1991A"))
	records := [][]byte{
		record("\x00", rootAt, size, true, dot),
		record("\x01", rootAt, size, true, posix(modeDir, 2)),
	}
	for i, name := range names {
		if name == "" || strings.ContainsAny(name, "/\x00") || len(name) > 128 {
			return nil, fmt.Errorf("file %q: %w", name, errFileName)
		}
		use := append([]byte{'N', 'M', byte(5 + len(name)), 1, 0}, name...)
		records = append(records, record(fmt.Sprintf("F%07d.;1", i), first, len(files[name]), false, append(posix(modeFile, 1), use...)))
		first += len(padded(files[name])) / sector
	}
	var dir []byte
	for _, r := range records {
		if left := sector - len(dir)%sector; len(r) > left {
			dir = append(dir, make([]byte, left)...) // a record is within one sector
		}
		dir = append(dir, r...)
	}
	return padded(dir), nil
}

var errFileName = errors.New("not a name of a file of 1 to 128 bytes")

// record is ECMA-119 9.1, with a system use field.
func record(name string, at, size int, dir bool, use []byte) []byte {
	flags := byte(0)
	if dir {
		flags = 2
	}
	var b bytes.Buffer
	b.Write([]byte{0, 0}) // the length of the whole comes last
	b.Write(both(at))
	b.Write(both(size))
	b.Write(make([]byte, 7)) // date
	b.Write([]byte{flags, 0, 0})
	b.Write(both16(1))
	b.WriteByte(byte(len(name)))
	b.WriteString(name)
	if len(name)%2 == 0 {
		b.WriteByte(0)
	}
	b.Write(use)
	if b.Len()%2 == 1 {
		b.WriteByte(0)
	}
	whole := b.Bytes()
	whole[0] = byte(len(whole))
	return whole
}

// posix is RRIP's PX: mode, links, owner and group root.
func posix(mode, links int) []byte {
	return slices.Concat([]byte("PX\x24\x01"), both(mode), both(links), both(0), both(0))
}
