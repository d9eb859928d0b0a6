package dropboxtest

import (
	"slices"
	"strings"
	"time"
)

// What follows changes and reads the tree as somebody else would, from a desktop or the web. Paths begin with "/"; what cannot be done
// panics, for it is the test that is wrong.

// Put writes a file and returns its revision.
func (s *Service) Put(path, content string) string {
	n, p := s.tree.write(commit{Path: path, Mode: mode{Tag: "overwrite"}}, []byte(content), ContentHash([]byte(content)))
	must(p)
	return n.rev
}

// Mkdir makes a folder.
func (s *Service) Mkdir(path string) {
	_, p := s.tree.mkdir(path, false)
	must(p)
}

// Remove deletes a file or a folder with all in it.
func (s *Service) Remove(path string) {
	_, p := s.tree.remove(path, "")
	must(p)
}

// Move moves a file or folder.
func (s *Service) Move(from, to string) {
	_, p := s.tree.relocate(from, to, false, false)
	must(p)
}

// Link makes a symbolic link as desktops upload them.
func (s *Service) Link(target, path string) { s.special(path, &node{link: target}) }

// Document makes a file that cannot be downloaded.
func (s *Service) Document(path string) { s.special(path, &node{export: true}) }

// Odd puts a file with a name that no path can have, such as one with a line feed.
func (s *Service) Odd(path string) { s.special(path, &node{}) }

func (s *Service) special(path string, n *node) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	n.id, n.rev, n.hash = s.tree.newID(), s.tree.newRev(), ContentHash(nil)
	n.modified, n.server = time.Now().UTC(), time.Now().UTC()
	s.tree.enter(path, n)
}

// Fill makes n empty files in a folder, quickly.
func (s *Service) Fill(dir string, n int, name func(i int) string) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	now, hash := time.Now().UTC(), ContentHash(nil)
	for i := range n {
		s.tree.enter(dir+"/"+name(i), &node{id: s.tree.newID(), rev: s.tree.newRev(), hash: hash, modified: now, server: now})
	}
}

// Read returns the content of a file.
func (s *Service) Read(path string) (content string, ok bool) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	n, p := s.tree.find(path)
	if p != nil || n.dir {
		return "", false
	}
	return string(n.data), true
}

// Tree returns the paths of all there is, as they are shown, folders with a slash.
func (s *Service) Tree() (paths []string) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.walk(s.tree.nodes[""], func(n *node) {
		if n.dir {
			paths = append(paths, n.display+"/")
		} else {
			paths = append(paths, n.display)
		}
	})
	slices.SortFunc(paths, strings.Compare)
	return paths
}

// SetQuota changes the room there is, 0: no limit.
func (s *Service) SetQuota(n int64) {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.quota = n
}

// LoseCursors makes all cursors end with "reset".
func (s *Service) LoseCursors() {
	s.tree.mu.Lock()
	defer s.tree.mu.Unlock()
	s.tree.epoch++
	close(s.tree.changed) // wakes longpolls
	s.tree.changed = make(chan struct{})
}

// Sessions returns the number of upload sessions that were begun and not finished.
func (s *Service) Sessions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

func must(p *problem) {
	if p != nil {
		panic("dropboxtest: " + strings.Join(p.tags, "/") + p.text)
	}
}
