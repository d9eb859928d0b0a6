package store

import "strings"

// tables lists the box's own tables by name: not goose's, not SQLite's.
func (d *sqliteDB) tables(tx *Tx) ([]table, error) {
	return listTables(tx, `
		SELECT m.name, c.name, c.pk FROM sqlite_schema m, pragma_table_info(m.name) c
		WHERE m.type = 'table' ORDER BY m.name, c.name`)
}

func (d *postgresDB) tables(tx *Tx) ([]table, error) {
	return listTables(tx, `
		SELECT t.table_name::text, c.column_name::text, coalesce(k.ordinal_position, 0)::bigint
		FROM information_schema.tables t
		JOIN information_schema.columns c ON c.table_schema = t.table_schema AND c.table_name = t.table_name
		LEFT JOIN information_schema.table_constraints p ON p.table_schema = t.table_schema AND p.table_name = t.table_name
			AND p.constraint_type = 'PRIMARY KEY'
		LEFT JOIN information_schema.key_column_usage k ON k.constraint_schema = p.constraint_schema AND k.constraint_name = p.constraint_name
			AND k.column_name = c.column_name
		WHERE t.table_schema = current_schema() AND t.table_type = 'BASE TABLE'
		ORDER BY t.table_name::text COLLATE "C", c.column_name::text COLLATE "C"`)
}

// listTables makes tables of the columns that q yields: table, column, place in the primary key from 1, or 0.
func listTables(tx *Tx, q string) ([]table, error) {
	rows, err := tx.Query(q)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []table
	for rows.Next() {
		var name, column string
		var place int
		if err := rows.Scan(&name, &column, &place); err != nil {
			return nil, err
		}
		if name == versionTable || strings.HasPrefix(name, "sqlite_") {
			continue
		}
		if len(all) == 0 || all[len(all)-1].name != name {
			all = append(all, table{name: name})
		}
		t := &all[len(all)-1]
		t.columns = append(t.columns, column)
		if place > 0 {
			for len(t.key) < place {
				t.key = append(t.key, "")
			}
			t.key[place-1] = column
		}
	}
	return all, rows.Err()
}
