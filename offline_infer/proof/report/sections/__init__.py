"""What the report shows for each kind of record, a module per question a reader asks."""
