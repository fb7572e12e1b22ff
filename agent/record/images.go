package record

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// ErrImageExists says that an image of that name is recorded already.
var ErrImageExists = errors.New("an image of that name is recorded already")

// Images are the records of images. A record's file, images/<name>.<generation>, is written once and never changes: who
// changes a record creates the next generation with O_EXCL, and of two that do so at once one has to look again. The
// highest generation that is whole counts; lower ones are removed by the writer of a higher one. Records are never
// removed. An Images is safe for concurrent use, in several processes and on several nodes.
type Images struct {
	dir folder
	now func() time.Time

	mu   sync.Mutex       // guards read
	read map[string]Image // by file name: a file that is whole stays what it is
}

// NewImages makes an Images. Nothing is read or created.
func NewImages(cfg Config) *Images { return newImages(cfg, disk{}) }

func newImages(cfg Config, f files) *Images {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Images{dir: newFolder(f, cfg.Dir, "images"), now: cfg.Now, read: map[string]Image{}}
}

// generations are the generations of one image, highest first.
type generations []int

// listed returns the generations of all images by their escaped names.
func (s *Images) listed() (map[string]generations, error) {
	names, err := s.dir.names()
	if err != nil {
		return nil, err
	}
	all := map[string]generations{}
	for _, file := range names {
		if escaped, generation, ok := parseImageFile(file); ok {
			all[escaped] = append(all[escaped], generation)
		}
	}
	for _, g := range all {
		slices.Sort(g)
		slices.Reverse(g)
	}
	s.forget(names)
	return all, nil
}

// forget drops what was read from files that are gone.
func (s *Images) forget(names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.read) <= 2*len(names) {
		return
	}
	for file := range s.read {
		if !slices.Contains(names, file) {
			delete(s.read, file)
		}
	}
}

// load reads one generation: *IncompleteError if it is not whole.
func (s *Images) load(escaped string, generation int) (Image, error) {
	file := fmt.Sprintf("%s.%d", escaped, generation)
	s.mu.Lock()
	img, known := s.read[file]
	s.mu.Unlock()
	if known {
		return img.clone(), nil
	}
	path := s.dir.file(file)
	raw, err := s.dir.read(path)
	if err != nil {
		return Image{}, err
	}
	if !wholeFile(raw) {
		modified, err := s.dir.modTime(path)
		if err != nil {
			return Image{}, err
		}
		return Image{}, &IncompleteError{Incomplete{Path: path, Generation: generation, ModTime: modified}}
	}
	if img, err = decodeImage(path, raw); err != nil {
		return Image{}, err
	}
	img.Generation = generation
	s.mu.Lock()
	defer s.mu.Unlock()
	s.read[file] = img
	return img.clone(), nil
}

// current returns the highest generation that is whole, with no error and found false if there is none, and the highest
// one there is, whole or not. torn is why that is not whole; nil if it is.
func (s *Images) current(escaped string, g generations) (img Image, found bool, torn *IncompleteError, err error) {
	for _, generation := range g {
		img, err = s.load(escaped, generation)
		if t, ok := errors.AsType[*IncompleteError](err); ok {
			if torn == nil {
				torn = t
			}
			continue
		}
		return img, err == nil, torn, err
	}
	return Image{}, false, torn, nil
}

// Find returns the record of an image. One that is being written for the first time is not there yet.
func (s *Images) Find(name string) (Image, bool, error) {
	img, found, _, _, err := s.find(escapeName(name))
	if err != nil {
		return Image{}, false, fmt.Errorf("find record of image %q: %w", name, err)
	}
	return img, found, nil
}

// find is Find that also says how the highest generation is, and its number.
func (s *Images) find(escaped string) (img Image, found bool, torn *IncompleteError, top int, err error) {
	for range attempts {
		all, err := s.listed()
		if err != nil {
			return img, false, nil, 0, err
		}
		g := all[escaped]
		img, found, torn, err = s.current(escaped, g)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a later generation took its place
		}
		if len(g) > 0 {
			top = g[0]
		}
		return img, found, torn, top, err
	}
	return img, false, nil, 0, fmt.Errorf("%s: generations came and went %d times", s.dir.file(escaped), attempts)
}

// List returns all records, by name, and why others could not be read.
func (s *Images) List() (list []Image, broken []error, err error) {
	all, err := s.listed()
	if err != nil {
		return nil, nil, fmt.Errorf("list records of images: %w", err)
	}
	for escaped, g := range all {
		img, found, _, err := s.current(escaped, g)
		if errors.Is(err, fs.ErrNotExist) {
			img, found, _, _, err = s.find(escaped)
		}
		switch {
		case err != nil:
			broken = append(broken, err)
		case found:
			list = append(list, img)
		}
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return list, broken, nil
}

// Create records a new image. ErrImageExists, with the record, if there is one of that name; *IncompleteError while that
// is being written.
func (s *Images) Create(img Image) (Image, error) {
	if img.Created.IsZero() {
		img.Created = s.now().UTC()
	}
	made, err := s.next(img.Name, func(old Image, found bool) (Image, error) {
		if found {
			return old, ErrImageExists
		}
		return img, nil
	})
	if err != nil {
		return made, fmt.Errorf("record image %q: %w", img.Name, err)
	}
	return made, nil
}

// Update changes a record: f gets it as it is on file, and is called again when somebody else was faster. That may be
// somebody who has built upon what f had done, so f makes sure of a state, and does not count on doing it once. An f that
// returns false leaves the record as it is. *IncompleteError while another change is being written: try again.
func (s *Images) Update(name string, f func(*Image) bool) (Image, error) {
	made, err := s.next(name, func(old Image, found bool) (Image, error) {
		if !found {
			return old, fs.ErrNotExist
		}
		next := old.clone()
		if !f(&next) {
			return old, errUnchanged
		}
		return next, nil
	})
	if err != nil && !errors.Is(err, errUnchanged) {
		return made, fmt.Errorf("update record of image %q: %w", name, err)
	}
	return made, nil
}

var errUnchanged = errors.New("unchanged")

// next writes the generation that change makes of the present one, and starts again when somebody else was faster.
func (s *Images) next(name string, change func(old Image, found bool) (Image, error)) (Image, error) {
	escaped := escapeName(name)
	for range attempts {
		old, found, torn, top, err := s.find(escaped)
		if err != nil {
			return Image{}, err
		}
		if torn != nil && torn.Generation == top && !torn.Dead(s.now()) {
			return Image{}, torn
		}
		next, err := change(old, found)
		if err != nil {
			return next, err
		}
		next.Name, next.Generation = name, top+1
		if err = s.write(next); err == nil {
			return next, nil
		}
		if !errors.Is(err, fs.ErrExist) && !errors.Is(err, ErrLost) {
			return Image{}, err
		}
	}
	return Image{}, fmt.Errorf("it was changed %d times by others meanwhile", attempts)
}

// write creates a generation and makes sure that it counts: one that was created below a higher one, by somebody who had
// looked long ago or was taken for dead, does not.
func (s *Images) write(img Image) error {
	raw, err := img.encode()
	if err != nil {
		return err
	}
	escaped, file := escapeName(img.Name), imageFile(img.Name, img.Generation)
	f, err := s.dir.createIn(file)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, s.dir.drop(file))
	}
	all, err := s.listed()
	if err != nil {
		return err
	}
	g := all[escaped]
	if len(g) == 0 || g[0] != img.Generation {
		return errors.Join(ErrLost, s.dir.drop(file))
	}
	for _, lower := range slices.Backward(g) { // from the lowest up
		if lower < img.Generation {
			// What cannot be removed now does no harm: the next change removes it.
			_ = s.dir.drop(imageFile(img.Name, lower))
		}
	}
	return nil
}
