// Package identity knows the accounts: users in a tree of groups, their roles and profile, and everything they prove themselves with.
//
// A user is its ID, not its login: deleting an account takes its grants, keys and passwords along in the same transaction, and a namesake made later
// is somebody else. Every change of users, groups or roles moves an epoch; whoever holds a Subject asks Refresh, which costs one comparison while
// nothing changed.
package identity

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"cellgate/internal/clock"
	"cellgate/internal/fault"
	"cellgate/policy"
	"cellgate/policy/audit"
	"cellgate/store"
	"cellgate/store/seal"
)

// Config is what a Service is made of.
type Config struct {
	DB     *store.DB
	Policy *policy.Engine // login policies, and the grants that go with a deleted user
	Keys   *seal.Keyring  // seals S3 secrets; nil: there are none
	Audit  *audit.Log     // notes refused logins; nil: nowhere
	Clock  *clock.Clock
	Logger *slog.Logger // nil discards

	Hash       HashParams    // of new passwords; zero: 64 MiB, one pass, 4 lanes
	HashMemory int64         // bytes that all password hashes together may take at a time; 0: 64 MiB
	Budget     Budget        // of wrong passwords; zero fields have defaults
	Remember   time.Duration // how long a verified password needs no hashing again; 0: one hour
	Poll       time.Duration // how often to look for changes of other processes; 0: each second
}

// Service signs people in and keeps the accounts. Safe for concurrent use.
type Service struct {
	db       *store.DB
	policy   *policy.Engine
	keys     *seal.Keyring
	audit    *audit.Log
	clock    *clock.Clock
	log      *slog.Logger
	remember time.Duration
	hasher   *hasher
	budget   *budget
	verified *verified
	flights  singleflight.Group
	s3       s3Keys

	epoch    atomic.Uint64
	mu       sync.Mutex
	accounts map[string]*account // by login, as of the epoch asOf; guarded by mu
	asOf     uint64              // guarded by mu

	stop context.CancelFunc
	done chan struct{}
}

// New returns a ready service that follows the changes of other processes until Close.
func New(ctx context.Context, cfg Config) (*Service, error) {
	s := &Service{db: cfg.DB, policy: cfg.Policy, keys: cfg.Keys, audit: cfg.Audit, clock: cfg.Clock, log: cfg.Logger, remember: cfg.Remember}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.remember <= 0 {
		s.remember = time.Hour
	}
	var err error
	if s.hasher, err = newHasher(cfg.Hash, cfg.HashMemory); err != nil {
		return nil, fault.New("policy/identity.New", "", fault.Invalid, err)
	}
	s.budget = newBudget(cfg.Budget)
	var secret [32]byte
	rand.Read(secret[:])
	s.verified = newVerified(secret)
	if err := s.poll(ctx); err != nil {
		return nil, fault.Wrap("policy/identity.New", "", err)
	}
	poll := cfg.Poll
	if poll <= 0 {
		poll = time.Second
	}
	follow, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop, s.done = stop, make(chan struct{})
	go s.follow(follow, poll)
	return s, nil
}

// Close stops following.
func (s *Service) Close() error {
	s.stop()
	<-s.done
	return nil
}

func (s *Service) follow(ctx context.Context, every time.Duration) {
	defer close(s.done)
	tick := time.NewTicker(every)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.poll(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			s.log.Error("cannot look for changes of accounts; going on with what is known", "err", err)
		}
		failing = err != nil
	}
}

func (s *Service) poll(ctx context.Context) error {
	var epoch uint64
	if err := s.db.QueryRow(ctx, `SELECT epoch FROM epochs WHERE name = 'identity'`).Scan(&epoch); err != nil {
		return err
	}
	s.advance(epoch)
	return nil
}

// advance moves the epoch forward, never back.
func (s *Service) advance(to uint64) {
	for {
		have := s.epoch.Load()
		if to <= have || s.epoch.CompareAndSwap(have, to) {
			return
		}
	}
}

// Epoch returns the number of the present state of all accounts.
func (s *Service) Epoch() uint64 { return s.epoch.Load() }

// bump is the Flusher that moves the epoch once per shared transaction.
type bump struct{ s *Service }

var _ store.Flusher = bump{}

// Flush moves the epoch.
func (b bump) Flush(tx *store.Tx, _ []any) error {
	var epoch uint64
	if err := tx.QueryRow(`UPDATE epochs SET epoch = epoch + 1 WHERE name = 'identity' RETURNING epoch`).Scan(&epoch); err != nil {
		return err
	}
	tx.OnCommit(func() { b.s.advance(epoch) })
	return nil
}

func (s *Service) changed(tx *store.Tx) { tx.Collect(bump{s}, nil) }
