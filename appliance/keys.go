package appliance

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"cellgate/store"
	"cellgate/store/seal"
)

// The setting that ties a database to the keys its secrets are sealed with: keysExpected before they are made, then something sealed with them.
const (
	keysSetting  = "keys.probe"
	keysExpected = "expected"
	keysContext  = "keys probe"
)

// openKeys opens the keys of the data folder and sees to it that they fit the database. Keys are made with a database, never later: what is
// sealed there would be lost unnoticed.
func openKeys(ctx context.Context, db *store.DB, dir string) (*seal.Keyring, error) {
	probe, err := db.Setting(ctx, keysSetting)
	if err != nil {
		return nil, err
	}
	found, err := hasKeys(dir)
	if err != nil {
		return nil, err
	}
	if probe == "" && found {
		var known int64
		if err := db.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM users) + (SELECT COUNT(*) FROM datasources)`).Scan(&known); err != nil {
			return nil, err
		}
		if known == 0 {
			return nil, errNewDatabase(dir)
		}
		probe = keysExpected // of a box that did not have the probe yet
	}
	set := func(value string) error {
		return db.Update(ctx, func(tx *store.Tx) error { return store.SetSetting(tx, keysSetting, value) })
	}
	if probe == "" {
		probe = keysExpected
		if err := set(probe); err != nil {
			return nil, err
		}
	}
	if err := checkKeys(dir, probe); err != nil {
		return nil, err
	}
	keys, err := seal.Open(dir)
	if err != nil || probe != keysExpected {
		return keys, err
	}
	sealed, err := keys.Seal([]byte(keysSetting), keysContext)
	if err != nil {
		return nil, err
	}
	return keys, set(base64.StdEncoding.EncodeToString(sealed))
}

func keysFile(dir string) string { return filepath.Join(dir, "keys", "master.key") }

func hasKeys(dir string) (bool, error) {
	_, err := os.Stat(keysFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func errNewDatabase(dir string) error {
	return fmt.Errorf("%s has the keys of a box, but the database is new: its own is lost, or another one is configured. "+
		"Restore a backup into a new folder (cellgate restore); to start afresh, move %s away", filepath.Clean(dir), filepath.Join(dir, "keys"))
}

// checkKeys fails when the keys are not those that probe was sealed with. It makes none.
func checkKeys(dir, probe string) error {
	if probe == keysExpected {
		return nil
	}
	found, err := hasKeys(dir)
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("%s is missing, and the secrets in the database are sealed with it. Put the file back, or restore a backup into a new "+
			"folder (cellgate restore); to start afresh, use a new data folder and a new database", keysFile(dir))
	}
	keys, err := seal.Open(dir)
	if err != nil {
		return err
	}
	sealed, err := base64.StdEncoding.DecodeString(probe)
	if err == nil {
		_, err = keys.Unseal(sealed, keysContext)
	}
	if err != nil {
		return fmt.Errorf("%s holds other keys than the database is sealed with: it belongs to another box. Use that box's data folder, or give "+
			"this one a database of its own", keysFile(dir))
	}
	return nil
}
