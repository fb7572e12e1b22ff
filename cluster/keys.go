package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/hashicorp/memberlist"
)

// KeySize is how many bytes a key has: that makes it AES-256.
const KeySize = 32

func readKeys(keys func() ([][]byte, error)) ([][]byte, error) {
	read, err := keys()
	switch {
	case err != nil:
		return nil, fmt.Errorf("read keys: %w", err)
	case len(read) == 0:
		return nil, errors.New("read keys: there are none")
	}
	for i, key := range read {
		if len(key) != KeySize {
			return nil, fmt.Errorf("read keys: key %d has %d bytes, not %d", i+1, len(key), KeySize)
		}
	}
	return read, nil
}

// readKeys takes over the keys as they are now. Without any, those of before
// remain.
func (c *Cluster) readKeys() {
	keys, err := readKeys(c.cfg.Keys)
	if err == nil {
		err = turn(c.ring, keys)
	}
	if err != nil && c.warned.allows("keys") {
		c.cfg.Log.Warn("gossip keys are left as they were", "error", err)
	}
}

// turn makes keys those of the ring. At no moment is one missing that is in
// both: first what is new can be read, then it is written, then what is gone is
// forgotten.
func turn(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(key); err != nil {
			return fmt.Errorf("add key: %w", err)
		}
	}
	if err := useInOrder(ring, keys); err != nil {
		return fmt.Errorf("use key: %w", err)
	}
	installed := ring.GetKeys()
	for _, key := range slices.Backward(installed) {
		if !contains(keys, key) {
			if err := ring.RemoveKey(key); err != nil {
				return fmt.Errorf("remove key: %w", err)
			}
		}
	}
	return nil
}

// useInOrder makes the first key the primary one. If others are to stay, those
// to be removed have to come last, because removing one from the middle shifts
// the rest under the hands of who reads them.
func useInOrder(ring *memberlist.Keyring, keys [][]byte) error {
	installed := ring.GetKeys()
	inOrder := len(installed) >= len(keys) && slices.EqualFunc(installed[:len(keys)], keys, bytes.Equal)
	if inOrder {
		return nil
	}
	if len(keys) == len(installed) {
		return ring.UseKey(keys[0])
	}
	for _, key := range slices.Backward(keys) {
		if err := ring.UseKey(key); err != nil {
			return err
		}
	}
	return nil
}

func contains(keys [][]byte, key []byte) bool {
	return slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) })
}
