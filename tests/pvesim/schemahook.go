package pvesim

// Schema says against which schema requests are checked.
func (c *Cluster) Schema() string { return "unchecked" }

// SchemaErrors lists the requests that did not fit the schema.
func (c *Cluster) SchemaErrors() []string { return nil }

func (c *Cluster) checkSchema(*request) error { return nil }

func (c *Cluster) schemaMiss(*request) {}
