// What the reference implementation, libcni, makes of configuration directories: for each one a line of JSON with the network that
// a runtime would use, chosen as containerd's go-cni does (sorted, the first that can be loaded).
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/containernetworking/cni/libcni"
)

type network struct {
	File       string                   `json:"file"`
	Name       string                   `json:"name"`
	CNIVersion string                   `json:"cniVersion"`
	Plugins    []map[string]interface{} `json:"plugins"`
	Skipped    []string                 `json:"skipped"`
}

func load(file string) (*libcni.NetworkConfigList, error) {
	if strings.HasSuffix(file, ".conflist") {
		return libcni.ConfListFromFile(file)
	}
	conf, err := libcni.ConfFromFile(file)
	if err != nil {
		return nil, err
	}
	return libcni.ConfListFromConf(conf)
}

func main() {
	for _, dir := range os.Args[1:] {
		files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
		if err != nil {
			panic(err)
		}
		sort.Strings(files)
		found := network{Skipped: []string{}}
		for _, file := range files {
			list, err := load(file)
			if err != nil || len(list.Plugins) == 0 {
				found.Skipped = append(found.Skipped, filepath.Base(file))
				continue
			}
			found.File, found.Name, found.CNIVersion = filepath.Base(file), list.Name, list.CNIVersion
			for _, plugin := range list.Plugins {
				conf := map[string]interface{}{}
				if err := json.Unmarshal(plugin.Bytes, &conf); err != nil {
					panic(err)
				}
				found.Plugins = append(found.Plugins, conf)
			}
			break
		}
		line, _ := json.Marshal(found)
		fmt.Println(string(line))
	}
}
