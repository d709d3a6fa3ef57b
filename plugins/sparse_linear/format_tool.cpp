// The packed format and the layer record on the command line, for tests that hold them against the reference.
//
//   format_tool write N K TYPE ACTIVATION VALUES INDICES BIAS RECORD DENSE_BELOW_M
//                                                                      raw files to a record; BIAS may be empty
//   format_tool expand RECORD DENSE                                    a record to dense numbers, row by row
//   format_tool copy RECORD COPY                                       reads a record and writes it again
//   format_tool try RECORD...                                          what is said of each, a line for each
//   format_tool rows MIN MAX                                           the numbers of rows that are measured sparse
//   format_tool dense_rows MIN MAX                                     the same, dense
//   format_tool split M                                                rows computed in place, and in a copy
//
// Exits with 1 and one line on stderr where something is refused.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "bytes.h"
#include "record.h"

namespace {

using namespace sparseflow;

template <typename T>
std::vector<T> load(std::string const& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw FormatError("cannot open " + path);
  }
  std::vector<char> const bytes{std::istreambuf_iterator<char>(file), {}};
  std::vector<T> values(bytes.size() / sizeof(T));
  std::copy_n(bytes.data(), values.size() * sizeof(T), reinterpret_cast<char*>(values.data()));
  return values;
}

template <typename T>
void save(std::string const& path, std::vector<T> const& values) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<char const*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(T)));
  if (!file) {
    throw FormatError("cannot write " + path);
  }
}

Record load_record(std::string const& path) {
  auto const bytes = load<uint8_t>(path);
  return read(bytes.data(), bytes.size());
}

void save_record(std::string const& path, Record const& record) {
  auto const bytes = write(record.layer, record.choices);
  if (bytes.size() != written_size(record.layer, record.choices)) {
    throw FormatError("the size of a record is not what it was said to be");
  }
  save(path, bytes);
}

std::string refusal(std::string const& path) {
  try {
    load_record(path);
    return "";
  } catch (FormatError const& error) {
    return error.what();
  }
}

void run(std::vector<std::string> const& words) {
  auto const& verb = words.at(0);
  if (verb == "write") {
    Record record;
    record.layer.weight.n = std::stoll(words.at(1));
    record.layer.weight.k = std::stoll(words.at(2));
    record.layer.type = static_cast<Type>(std::stoi(words.at(3)));
    record.layer.activation = static_cast<Activation>(std::stoi(words.at(4)));
    record.layer.weight.values = load<uint16_t>(words.at(5));
    record.layer.weight.indices = load<uint8_t>(words.at(6));
    record.layer.bias = load<uint16_t>(words.at(7));
    record.layer.dense_below_m = std::stoll(words.at(9));
    check(record.layer);
    record.choices = {"some GPU sm90", 901, 130000, {}, {}};
    insert(record.choices.all, Choice{64, {3, 1, 0, 0}, 0, 20.5F});
    insert(record.choices.all, Choice{8, {1, 2, 1, 1}, 4096, 18.25F});
    insert(record.choices.dense, DenseChoice{4, {{1, 2, 3, 4, 5, 6, 7, 8}}, 512, 9.5F});
    insert(record.choices.dense, DenseChoice{1, {{9}}, 0, 8.5F});
    save_record(words.at(8), record);
  } else if (verb == "expand") {
    auto const weight = load_record(words.at(1)).layer.weight;
    std::vector<uint16_t> dense(static_cast<size_t>(weight.n * weight.k));
    auto const upper = weight.n / 2;  // in two parts, as the plugin does it
    expand(weight, 0, upper, dense.data());
    expand(weight, upper, weight.n - upper, dense.data() + upper * weight.k);
    save(words.at(2), dense);
  } else if (verb == "copy") {
    save_record(words.at(2), load_record(words.at(1)));
  } else if (verb == "try") {
    for (size_t i = 1; i < words.size(); ++i) {
      std::puts(refusal(words[i]).c_str());
    }
  } else if (verb == "rows" || verb == "dense_rows") {
    auto const rows = verb == "rows" ? rows_to_measure : dense_rows_to_measure;
    for (auto const m : rows(std::stoll(words.at(1)), std::stoll(words.at(2)))) {
      std::printf("%lld\n", static_cast<long long>(m));
    }
  } else if (verb == "split") {
    auto const parts = split(std::stoll(words.at(1)));
    for (auto const rows : {parts.whole, parts.tail, parts.copied}) {
      std::printf("%lld\n", static_cast<long long>(rows));
    }
  } else {
    throw FormatError("there is no verb " + verb);
  }
}

}  // namespace

int main(int count, char** words) {
  try {
    run({words + 1, words + count});
  } catch (std::exception const& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
