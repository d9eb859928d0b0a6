package store

import (
	"context"
	"database/sql"
	"errors"
)

// Setting returns the value of key, "" when it was never set.
func (db *DB) Setting(ctx context.Context, key string) (string, error) {
	var value string
	err := db.QueryRow(ctx, `SELECT value FROM settings WHERE key = $1`, key).Scan(&value)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", db.fault("store.Setting", err)
	}
	return value, nil
}

// SetSetting sets the value of key.
func SetSetting(tx *Tx, key, value string) error {
	_, err := tx.Exec(`INSERT INTO settings (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
	return err
}
